package qcow1

import (
	"bytes"
	"compress/flate"
	"context"
	"errors"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

func TestFormat(t *testing.T) {
	b, want := sample()
	codectest.RunReadOnly(t, Format, b, want)
}

func TestImagesOfQEMU(t *testing.T) {
	codectest.ReadsQEMU(t, Format, "qcow", nil, []string{"-c"})
}

// TestRefusedOfQEMU: what qemu-img makes that leads elsewhere or needs a key.
func TestRefusedOfQEMU(t *testing.T) {
	raw := codectest.RawFile(t, codectest.Full(1<<20, 1))
	path := raw + ".qcow"
	codectest.Exec(t, "qemu-img", "create", "-f", "qcow", "-b", raw, "-F", "raw", path)
	_, err := Format.Open(context.Background(), codectest.File(t, path))
	if !errors.Is(err, codec.ErrUnsupported) {
		t.Errorf("error %v, want %v", err, codec.ErrUnsupported)
	}
	path = raw + ".aes"
	codectest.Exec(t, "qemu-img", "create", "-f", "qcow", "--object", "secret,id=s,data=abc", "-o", "encrypt.format=aes,encrypt.key-secret=s", path, "1M")
	if _, err = Format.Open(context.Background(), codectest.File(t, path)); !errors.Is(err, codec.ErrUnsupported) {
		t.Errorf("error %v, want %v", err, codec.ErrUnsupported)
	}
}

const (
	cluster = 1024
	diskLen = 80*cluster + 512
	l2at    = 512 // and 1024
)

// deflated is b as a raw deflate stream.
func deflated(b []byte) []byte {
	var z bytes.Buffer
	w, err := flate.NewWriter(&z, 9)
	if err == nil {
		_, err = w.Write(b)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		panic(err)
	}
	return z.Bytes()
}

// sample is a small image and its disk: clusters of 1 KiB, the last of a
// sector, 64 to an L2 table. Cluster 70 stands before 3, and 80 last, cut by the end;
// 5 and 79 are compressed, one behind the other.
func sample() (b, disk []byte) {
	b, disk = make([]byte, 4096), make([]byte, diskLen)
	copy(b, header{version: 1, size: diskLen, clusterBits: 10, l2Bits: 6, l1Off: headLen}.marshal())
	be.PutUint64(b[headLen:], l2at)
	be.PutUint64(b[headLen+8:], l2at+512)
	entry := func(i int, e uint64) { be.PutUint64(b[l2at+8*i:], e) }
	fill := func(i int) []byte {
		p := disk[i*cluster : min((i+1)*cluster, diskLen)]
		for k := range p {
			p[k] = byte(i) ^ byte(k%11)
		}
		return p
	}
	entry(70, 2048)
	copy(b[2048:], fill(70))
	entry(3, 3072)
	copy(b[3072:], fill(3))
	for _, i := range []int{5, 79} {
		z := deflated(fill(i))
		entry(i, compressed|uint64(len(z))<<(63-10)|uint64(len(b)))
		b = append(b, z...)
	}
	b = append(b, make([]byte, cluster-len(b)%cluster)...)
	entry(80, uint64(len(b)))
	return append(b, fill(80)...), disk
}

// marshal is the header without a backing file.
func (h header) marshal() []byte {
	b := make([]byte, headLen)
	copy(b, magic)
	be.PutUint32(b[4:], h.version)
	be.PutUint64(b[24:], h.size)
	b[32], b[33] = h.clusterBits, h.l2Bits
	be.PutUint64(b[40:], h.l1Off)
	return b
}

func TestRefusals(t *testing.T) {
	u64 := func(off int, v uint64) func(b []byte) []byte {
		return func(b []byte) []byte { be.PutUint64(b[off:], v); return b }
	}
	u8 := func(off int, v byte) func(b []byte) []byte {
		return func(b []byte) []byte { b[off] = v; return b }
	}
	l1 := func(i int, v uint64) func(b []byte) []byte { return u64(headLen+8*i, v) }
	l2 := func(i int, v uint64) func(b []byte) []byte { return u64(l2at+8*i, v) }
	packed := func(off, n uint64) uint64 { return compressed | n<<(63-10) | off }
	for _, c := range []struct {
		name string
		mend func(b []byte) []byte
		err  error
		text string
	}{
		{"other magic", u8(0, 'q'), codec.ErrFormat, "magic"},
		{"empty file", func(b []byte) []byte { return nil }, codec.ErrFormat, "magic"},
		{"qcow2", u8(7, 2), codec.ErrFormat, "version 1"},
		{"short file", func(b []byte) []byte { return b[:47] }, codec.ErrCorrupt, "header"},
		{"backing file", u64(8, 100), codec.ErrUnsupported, "backing file"},
		{"length of a backing file", u8(19, 5), codec.ErrUnsupported, "5 bytes"},
		{"encrypted", u8(39, 1), codec.ErrUnsupported, "encrypted by method 1"},
		{"small clusters", u8(32, 8), codec.ErrCorrupt, "cluster_bits at 32 is 8"},
		{"large clusters", u8(32, 17), codec.ErrCorrupt, "cluster_bits at 32 is 17"},
		{"clusters of 2^255", u8(32, 255), codec.ErrCorrupt, "cluster_bits"},
		{"small tables", u8(33, 5), codec.ErrCorrupt, "l2_bits at 33 is 5"},
		{"large tables", u8(33, 14), codec.ErrCorrupt, "l2_bits at 33 is 14"},
		{"odd size", u64(24, diskLen+100), codec.ErrCorrupt, "disk size at 24"},
		{"disk of 16 EiB", u64(24, 1<<64-1), codec.ErrCorrupt, "disk size at 24"},
		{"disk of 8 EiB", u64(24, codec.MaxSize/512*512), codec.ErrCorrupt, "L1 table at 0x30"},
		{"disk of 10 MiB", u64(24, 10<<20), codec.ErrCorrupt, "L2 table"},
		{"L1 far away", u64(40, 1<<63), codec.ErrCorrupt, "L1 table"},
		{"L1 past the end", u64(40, 1<<20), codec.ErrCorrupt, "L1 table at 0x100000"},
		{"L1 at the end", func(b []byte) []byte { return u64(40, uint64(len(b)-15))(b) }, codec.ErrCorrupt, "L1 table"},
		{"L1 in the header", u64(40, 24), codec.ErrCorrupt, "L2 table"},
		{"L2 past the end", l1(1, 1<<20), codec.ErrCorrupt, "L1 entry 1"},
		{"L2 far away", l1(1, 1<<63), codec.ErrCorrupt, "L1 entry 1"},
		{"L2 twice", l1(1, l2at), codec.ErrCorrupt, "share"},
		{"L2 that overlaps", l1(1, l2at+8), codec.ErrCorrupt, "share"},
		{"L2 over L1", l1(1, headLen), codec.ErrCorrupt, ""},
		{"cluster past the end", l2(3, 1<<20), codec.ErrCorrupt, "block 3 at 0x100000"},
		{"cluster far away", l2(3, 1<<62), codec.ErrCorrupt, "block 3"},
		{"odd cluster", l2(3, 3073), codec.ErrCorrupt, "0xc01 of cluster 3"},
		{"cluster twice", l2(3, 2048), codec.ErrCorrupt, "share"},
		{"cluster over a table", l2(3, l2at), codec.ErrCorrupt, "share"},
		{"compressed of nothing", l2(5, packed(4096, 0)), codec.ErrCorrupt, "0 bytes at"},
		{"compressed at 0", l2(5, packed(0, 5)), codec.ErrCorrupt, "at 0x0"},
		{"compressed past the end", l2(5, packed(1<<40, 5)), codec.ErrCorrupt, "encoded block"},
		{"compressed over the end", func(b []byte) []byte { return l2(5, packed(uint64(len(b)-4), 5))(b) }, codec.ErrCorrupt, "encoded block"},
		{"compressed over a cluster", l2(5, packed(4000, 200)), codec.ErrCorrupt, "share"},
		{"compressed over another", func(b []byte) []byte { return l2(5, be.Uint64(b[l2at+8*79:]))(b) }, codec.ErrCorrupt, "share"},
		{"cut tail", func(b []byte) []byte { return b[:len(b)-1] }, codec.ErrCorrupt, "block 80"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, _ := sample()
			codectest.Refused(t, Format, c.mend(b), c.err, c.text)
		})
	}
}

// TestDamagedData: what is compressed is checked when it is read.
func TestDamagedData(t *testing.T) {
	long, disk := sample()
	long = append(long, make([]byte, cluster-512)...)
	for _, c := range []struct {
		name string
		data []byte
		err  error
	}{
		{"noise", bytes.Repeat([]byte{0xff}, 40), codec.ErrCorrupt},
		{"too short", deflated(make([]byte, cluster-1)), codec.ErrCorrupt},
		{"cut", deflated(disk[3*cluster : 4*cluster])[:6], codec.ErrCorrupt},
		{"whole", deflated(make([]byte, cluster)), nil},
		{"longer, of which the start counts", deflated(make([]byte, 1<<20)), nil},
	} {
		if len(c.data) >= cluster {
			c.data = c.data[:cluster-1] // more than the start is not needed
		}
		b := append(bytes.Clone(long), c.data...)
		be.PutUint64(b[l2at+8*6:], compressed|uint64(len(c.data))<<(63-10)|uint64(len(long)))
		d := codectest.Open(t, Format, codectest.Bytes(b))
		if _, err := d.ReadAt(context.Background(), make([]byte, 100), 6*cluster); !errors.Is(err, c.err) {
			t.Errorf("%s: error %v, want %v", c.name, err, c.err)
		}
	}
}

// FuzzOpen compares what the table reads with the tables read naively.
func FuzzOpen(f *testing.F) {
	b, _ := sample()
	f.Add(b)
	f.Add(b[:4000])
	f.Add(header{version: 1, clusterBits: 16, l2Bits: 13, l1Off: headLen}.marshal())
	f.Add(append(header{version: 1, size: 70144, clusterBits: 16, l2Bits: 13, l1Off: headLen}.marshal(), make([]byte, 8)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := codectest.OpenHostile(Format, b)
		if err != nil {
			t.Fatal(err)
		}
		if d == nil || d.(codec.Coded).Unit() != 0 {
			return
		}
		h := parse(b)
		codectest.SameAs(t, d, func(off int64) byte { return naive(b, h, off) })
	})
}

// naive is the byte at off of the disk in image b.
func naive(b []byte, h header, off int64) byte {
	i := off >> h.clusterBits
	l2 := be.Uint64(b[int64(h.l1Off)+8*(i>>h.l2Bits):])
	if l2 == 0 {
		return 0
	}
	e := be.Uint64(b[int64(l2)+8*(i&(1<<h.l2Bits-1)):])
	if e == 0 {
		return 0
	}
	return b[int64(e)+off&(1<<h.clusterBits-1)]
}

func TestNaiveReaderAgrees(t *testing.T) {
	b, want := sample()
	h := parse(b)
	for _, i := range []int64{0, 3, 4, 70, 80} {
		for off := i * cluster; off < min((i+1)*cluster, diskLen); off++ {
			if got := naive(b, h, off); got != want[off] {
				t.Fatalf("byte at %d is %#x, want %#x", off, got, want[off])
			}
		}
	}
}
