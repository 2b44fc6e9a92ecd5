package parallels

import (
	"strings"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

func TestFormat(t *testing.T) {
	for name, h := range map[string]header{
		"cluster numbers":          {ext: true, cluster: 8, entries: 12, sectors: 9*8 + 3},
		"sector numbers":           {cluster: 8, entries: 12, sectors: 9*8 + 3},
		"clusters of three":        {cluster: 3, entries: 10, sectors: 9*3 + 2},
		"twelve sectors, numbered": {ext: true, cluster: 12, entries: 10, sectors: 9*12 + 6},
	} {
		t.Run(name, func(t *testing.T) {
			b, want := sample(h)
			codectest.RunReadOnly(t, Format, b, want)
		})
	}
}

func TestImagesOfQEMU(t *testing.T) {
	codectest.ReadsQEMU(t, Format, "parallels", nil, []string{"-o", "cluster_size=64k"}, []string{"-o", "cluster_size=4M"})
}

// sample is a small image and its disk of ten clusters, of which 5, 0 and 9
// stand in the file in this order, the last cut where the disk ends.
func sample(h header) (b, disk []byte) {
	n, tail := int(h.clusterLen()), int(h.sectors-9*uint64(h.cluster))*sector
	b, disk = make([]byte, 3*n+tail), make([]byte, h.sectors*sector)
	copy(b, h.marshal())
	for k, i := range []int{5, 0, 9} {
		at := (1 + k) * n
		e := 1 + k
		if !h.ext {
			e *= int(h.cluster)
		}
		le.PutUint32(b[headLen+4*i:], uint32(e))
		p := b[at:min(at+n, len(b))]
		for j := range p {
			p[j] = byte(k+1)*16 + byte(j%13)
		}
		copy(disk[i*n:], p)
	}
	return b, disk
}

func small() (b, disk []byte) {
	return sample(header{ext: true, cluster: 8, entries: 12, sectors: 9*8 + 3})
}

func (h header) marshal() []byte {
	b := make([]byte, headLen)
	copy(b, magicOld)
	if h.ext {
		copy(b, magicExt)
	}
	le.PutUint32(b[16:], version2)
	le.PutUint32(b[28:], h.cluster)
	le.PutUint32(b[32:], h.entries)
	le.PutUint64(b[36:], h.sectors)
	le.PutUint32(b[44:], h.inUse)
	le.PutUint64(b[56:], h.extension)
	return b
}

type mend = func(b []byte) []byte

func u32(off int, v uint32) mend {
	return func(b []byte) []byte { le.PutUint32(b[off:], v); return b }
}

func u64(off int, v uint64) mend {
	return func(b []byte) []byte { le.PutUint64(b[off:], v); return b }
}

func TestRefusals(t *testing.T) {
	entry := func(i int, v uint32) mend { return u32(headLen+4*i, v) }
	old := func(then mend) mend {
		return func(b []byte) []byte { copy(b, magicOld); return then(b) }
	}
	for _, c := range []struct {
		name string
		mend mend
		err  error
		text string
	}{
		{"other magic", u32(0, 1), codec.ErrFormat, "magic"},
		{"empty file", func(b []byte) []byte { return nil }, codec.ErrFormat, "magic"},
		{"version 3", u32(16, 3), codec.ErrFormat, "version"},
		{"short file", func(b []byte) []byte { return b[:63] }, codec.ErrCorrupt, "header"},
		{"header alone", func(b []byte) []byte { return b[:64] }, codec.ErrCorrupt, "BAT"},
		{"cluster of nothing", u32(28, 0), codec.ErrCorrupt, "0 sectors"},
		{"cluster of GiB", u32(28, maxSectors+1), codec.ErrCorrupt, "cluster at 28"},
		{"cluster of 2^32-1", u32(28, 1<<32-1), codec.ErrCorrupt, "cluster at 28"},
		{"few entries", u32(32, 9), codec.ErrCorrupt, "more than its 9 clusters of 8"},
		{"many entries", u32(32, 1<<20), codec.ErrCorrupt, "BAT at 0x40"},
		{"most entries", u32(32, 1<<32-1), codec.ErrCorrupt, "BAT at 0x40"},
		{"disk of 16 EiB", u64(36, 1<<64-1), codec.ErrCorrupt, "larger than any"},
		{"disk of 8 EiB", u64(36, codec.MaxSize/sector), codec.ErrCorrupt, "more than its 12 clusters"},
		{"low half of the size", old(u64(36, 1<<40+12*8+1)), codec.ErrCorrupt, "disk at 36 of 97 sectors"},
		{"cluster past the end", entry(1, 5), codec.ErrCorrupt, "past the end"},
		{"cluster far away", entry(1, 1<<32-1), codec.ErrCorrupt, "cluster 1"},
		{"cluster of the largest size far away", func(b []byte) []byte { return u32(28, maxSectors)(entry(0, 1<<32-1)(b)) }, codec.ErrCorrupt, "past the end"},
		{"cluster twice", entry(1, 1), codec.ErrCorrupt, "share"},
		{"sector number over the BAT", old(u32(headLen, 0)), codec.ErrCorrupt, ""},
		{"dirty with an extension", func(b []byte) []byte { return u32(44, inUse)(u64(56, 8)(b)) }, codec.ErrUnsupported, "not closed cleanly"},
		{"extension past the end", u64(56, 1<<20), codec.ErrCorrupt, "format extension at sector 0x100000"},
		{"extension far away", u64(56, 1<<63), codec.ErrCorrupt, "format extension"},
		{"extension without its magic", u64(56, 8), codec.ErrCorrupt, "no magic"},
		{"cut tail", func(b []byte) []byte { return b[:len(b)-1] }, codec.ErrCorrupt, "cut by the end"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, _ := small()
			codectest.Refused(t, Format, c.mend(b), c.err, c.text)
		})
	}
}

func TestDirtyIsRead(t *testing.T) {
	b, want := small()
	le.PutUint32(b[44:], inUse)
	d := codectest.Open(t, Format, codectest.Bytes(b))
	if notes := strings.Join(d.(codec.Noted).Notes(), ""); !strings.Contains(notes, "not closed cleanly") {
		t.Errorf("notes %q", notes)
	}
	if got, err := codectest.ReadAll(d); err != nil || string(got) != string(want) {
		t.Errorf("other bytes, or %v", err)
	}
}

// TestExtension: features that a reader may do without are ignored.
func TestExtension(t *testing.T) {
	const bitmaps = 0x20385FAE252CB34A
	base, want := small()
	base = append(base, make([]byte, 5*4096-len(base))...)
	const at = 5 * 4096
	le.PutUint64(base[56:], at/sector)
	feature := func(p []byte, magic, flags uint64, n uint32) []byte {
		le.PutUint64(p, magic)
		le.PutUint64(p[8:], flags)
		le.PutUint32(p[16:], n)
		return p[featureHead+codec.Up(int64(n), 8):]
	}
	for _, c := range []struct {
		name string
		make func(x []byte)
		err  error
		text string
	}{
		{"no feature", func(x []byte) {}, nil, ""},
		{"bitmaps and another", func(x []byte) { feature(feature(x[24:], bitmaps, 0, 100), 77, flagTransit, 8) }, nil, ""},
		{"one that is necessary", func(x []byte) { feature(feature(x[24:], bitmaps, 0, 100), 77, 1, 8) }, codec.ErrUnsupported, "feature 0x4d with flags 0x1"},
		{"one that is too long", func(x []byte) { feature(x[24:], bitmaps, 0, 4000)[0] = 0; le.PutUint32(x[40:], 1<<32-1) }, codec.ErrCorrupt, "past the end"},
		{"no end", func(x []byte) {
			p := x[24:]
			for len(p) >= featureHead {
				p = feature(p, 1, 0, 0)
			}
		}, codec.ErrCorrupt, "without an end"},
	} {
		x := make([]byte, 4096)
		le.PutUint64(x, extensionMagic)
		c.make(x)
		b := append(base[:at:at], x...)
		if c.err != nil {
			codectest.Refused(t, Format, b, c.err, c.text)
			continue
		}
		if got, err := codectest.ReadAll(codectest.Open(t, Format, codectest.Bytes(b))); err != nil || string(got) != string(want) {
			t.Errorf("%s: other bytes, or %v", c.name, err)
		}
		le.PutUint32(b[headLen+4:], 5) // a cluster over the extension
		codectest.Refused(t, Format, b, codec.ErrCorrupt, "share")
	}
}

// FuzzOpen compares what the table reads with the BAT read naively.
func FuzzOpen(f *testing.F) {
	b, _ := small()
	f.Add(b)
	f.Add(b[:3*4096])
	b, _ = sample(header{cluster: 3, entries: 10, sectors: 9*3 + 2})
	f.Add(b)
	f.Add(header{cluster: 1}.marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := codectest.OpenHostile(Format, b)
		if err != nil {
			t.Fatal(err)
		}
		if d == nil {
			return
		}
		h := parse(b)
		codectest.SameAs(t, d, func(off int64) byte { return naive(b, h, off) })
	})
}

// naive is the byte at off of the disk in image b.
func naive(b []byte, h header, off int64) byte {
	e := int64(le.Uint32(b[headLen+4*(off/h.clusterLen()):]))
	if e == 0 {
		return 0
	}
	if h.ext {
		e *= int64(h.cluster)
	}
	return b[e*sector+off%h.clusterLen()]
}
