package qed

import (
	"context"
	"errors"
	"strings"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

func TestFormat(t *testing.T) {
	b, want := sample()
	codectest.RunReadOnly(t, Format, b, want)
}

func TestImagesOfQEMU(t *testing.T) {
	codectest.ReadsQEMU(t, Format, "qed", nil, []string{"-o", "cluster_size=4k,table_size=2"}, []string{"-o", "cluster_size=128k,table_size=8"})
}

func TestBackedOfQEMU(t *testing.T) {
	raw := codectest.RawFile(t, codectest.Full(1<<20, 1))
	path := raw + ".qed"
	codectest.Exec(t, "qemu-img", "create", "-f", "qed", "-b", raw, "-F", "raw", path)
	_, err := Format.Open(context.Background(), codectest.File(t, path))
	if !errors.Is(err, codec.ErrUnsupported) {
		t.Errorf("error %v, want %v", err, codec.ErrUnsupported)
	}
}

const (
	c4k     = 4096
	diskLen = 600*c4k + 512
	l2at    = 2 * c4k // and 3
)

// sample is a small image and its disk: clusters of 4 KiB, 512 to a table.
// Cluster 3 stands before 1, 2 is zeros by entry, 513 is there too, and of the
// last one, 600, only a sector is.
func sample() (b, disk []byte) {
	b, disk = make([]byte, 7*c4k+512), make([]byte, diskLen)
	copy(b, header{cluster: c4k, table: 1, header: 1, l1Off: c4k, size: diskLen}.marshal())
	le.PutUint64(b[c4k:], l2at)
	le.PutUint64(b[c4k+8:], l2at+c4k)
	le.PutUint64(b[l2at+8*2:], entryZero)
	for k, i := range []int{3, 1, 513, 600} {
		at := (4 + k) * c4k
		le.PutUint64(b[l2at+8*i:], uint64(at))
		for j := range b[at:min(at+c4k, len(b))] {
			b[at+j] = byte(k+1)*16 + byte(j%13)
		}
		copy(disk[i*c4k:], b[at:min(at+c4k, len(b))])
	}
	return b, disk
}

func (h header) marshal() []byte {
	b := make([]byte, headLen)
	copy(b, magic)
	le.PutUint32(b[4:], h.cluster)
	le.PutUint32(b[8:], h.table)
	le.PutUint32(b[12:], h.header)
	le.PutUint64(b[16:], h.features)
	le.PutUint64(b[40:], h.l1Off)
	le.PutUint64(b[48:], h.size)
	return b
}

func TestRefusals(t *testing.T) {
	u32 := func(off int, v uint32) func(b []byte) []byte {
		return func(b []byte) []byte { le.PutUint32(b[off:], v); return b }
	}
	u64 := func(off int, v uint64) func(b []byte) []byte {
		return func(b []byte) []byte { le.PutUint64(b[off:], v); return b }
	}
	l1 := func(i int, v uint64) func(b []byte) []byte { return u64(c4k+8*i, v) }
	l2 := func(i int, v uint64) func(b []byte) []byte { return u64(l2at+8*i, v) }
	for _, c := range []struct {
		name string
		mend func(b []byte) []byte
		err  error
		text string
	}{
		{"other magic", u32(0, 1), codec.ErrFormat, "magic"},
		{"empty file", func(b []byte) []byte { return nil }, codec.ErrFormat, "magic"},
		{"short file", func(b []byte) []byte { return b[:63] }, codec.ErrCorrupt, "header"},
		{"header alone", func(b []byte) []byte { return b[:64] }, codec.ErrCorrupt, "L1 table at 0x1000"},
		{"backing file", u64(16, featureBacking), codec.ErrUnsupported, "backing file"},
		{"name of a backing file", u32(60, 7), codec.ErrUnsupported, "7 bytes"},
		{"unknown feature", u64(16, 8|featureNeedCheck), codec.ErrUnsupported, "features 0x8"},
		{"cluster size 0", u32(4, 0), codec.ErrCorrupt, "cluster size at 4 is 0"},
		{"small clusters", u32(4, 2048), codec.ErrCorrupt, "cluster size at 4 is 2048"},
		{"large clusters", u32(4, 128<<20), codec.ErrCorrupt, "cluster size at 4"},
		{"no power of two", u32(4, 12288), codec.ErrCorrupt, "cluster size at 4 is 12288"},
		{"table size 0", u32(8, 0), codec.ErrCorrupt, "table size at 8 is 0"},
		{"table size 3", u32(8, 3), codec.ErrCorrupt, "table size at 8 is 3"},
		{"table size 32", u32(8, 32), codec.ErrCorrupt, "table size at 8 is 32"},
		{"no header", u32(12, 0), codec.ErrCorrupt, "header size at 12"},
		{"header over the tables", u32(12, 2), codec.ErrCorrupt, "share"},
		{"header of TiB", u32(12, 1<<32-1), codec.ErrCorrupt, "header at 0x0"},
		{"odd L1", u64(40, c4k+8), codec.ErrCorrupt, "L1 table at 0x1008"},
		{"L1 at 0", u64(40, 0), codec.ErrCorrupt, ""},
		{"L1 past the end", u64(40, 1<<30), codec.ErrCorrupt, "L1 table at 0x40000000"},
		{"L1 far away", u64(40, 1<<63), codec.ErrCorrupt, "L1 table"},
		{"odd size", u64(48, 1000), codec.ErrCorrupt, "disk size at 48 is 1000"},
		{"disk of 16 EiB", u64(48, 1<<64-512), codec.ErrCorrupt, "disk size at 48"},
		{"disk larger than the tables", u64(48, 512*512*c4k+512), codec.ErrCorrupt, "two levels"},
		{"L2 past the end", l1(1, 1<<20), codec.ErrCorrupt, "L1 entry 1"},
		{"L2 far away", l1(1, 1<<63), codec.ErrCorrupt, "L1 entry 1"},
		{"odd L2", l1(1, l2at+8), codec.ErrCorrupt, "L1 entry 1"},
		{"L2 of zeros", l1(1, entryZero), codec.ErrCorrupt, "L1 entry 1"},
		{"L2 twice", l1(1, l2at), codec.ErrCorrupt, "share"},
		{"L2 over L1", l1(1, c4k), codec.ErrCorrupt, "share"},
		{"cluster past the end", l2(3, 1<<20), codec.ErrCorrupt, "block 3 at 0x100000"},
		{"cluster far away", l2(3, 1<<63), codec.ErrCorrupt, "cluster 3"},
		{"odd cluster", l2(3, 5*c4k+1), codec.ErrCorrupt, "cluster 3"},
		{"cluster twice", l2(3, 5*c4k), codec.ErrCorrupt, "share"},
		{"cluster over a table", l2(3, l2at), codec.ErrCorrupt, "share"},
		{"cluster over the header", l2(4, 0x10000000000), codec.ErrCorrupt, "block 4"},
		{"cut tail", func(b []byte) []byte { return b[:len(b)-1] }, codec.ErrCorrupt, "block 600"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, _ := sample()
			codectest.Refused(t, Format, c.mend(b), c.err, c.text)
		})
	}
}

// TestDirtyIsRead: an image whose writer was killed is read, with a note.
func TestDirtyIsRead(t *testing.T) {
	b, want := sample()
	le.PutUint64(b[16:], featureNeedCheck|featureNoProbe)
	d := codectest.Open(t, Format, codectest.Bytes(b))
	if notes := strings.Join(d.(codec.Noted).Notes(), ""); !strings.Contains(notes, "not closed cleanly") {
		t.Errorf("notes %q", notes)
	}
	if got, err := codectest.ReadAll(d); err != nil || string(got) != string(want) {
		t.Errorf("other bytes, or %v", err)
	}
}

// FuzzOpen compares what the table reads with the tables read naively.
func FuzzOpen(f *testing.F) {
	b, _ := sample()
	f.Add(b)
	f.Add(b[:6*c4k])
	f.Add(append(header{cluster: c4k, table: 1, header: 1, l1Off: c4k}.marshal(), make([]byte, 2*c4k)...))
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
	i := off / int64(h.cluster)
	l2 := le.Uint64(b[int64(h.l1Off)+8*(i/h.entries()):])
	if l2 == 0 {
		return 0
	}
	e := le.Uint64(b[int64(l2)+8*(i%h.entries()):])
	if e <= entryZero {
		return 0
	}
	return b[int64(e)+off%int64(h.cluster)]
}
