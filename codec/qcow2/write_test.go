package qcow2

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

// watch is a writer that checks the order of writes and of the reads before
// them.
type watch struct {
	t       *testing.T
	written []codectest.Range
	end     int64 // of the furthest write
	err     error // of every write
	each    func(off int64)
}

func (w *watch) WriteAt(p []byte, off int64) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	if w.each != nil {
		w.each(off)
	}
	if len(w.written) > 0 && w.written[len(w.written)-1].Off == 0 {
		w.t.Errorf("write at %#x after the first cluster", off)
	}
	if off < w.end-CompressBehind && off != 0 {
		w.t.Errorf("write at %#x, %d bytes behind %#x", off, w.end-off, w.end)
	}
	w.end = max(w.end, off+int64(len(p)))
	w.written = append(w.written, codectest.Range{Off: off, Len: int64(len(p))})
	return len(p), nil
}

// Every byte is written once, in the promised order.
func TestCompressWritesInOrder(t *testing.T) {
	for name, d := range map[string]codec.Disk{
		"tiled": rawDisk(t, tiled(300)),
		"empty": codectest.Empty(0),
		// One payload, then plain clusters beyond the bound, then payloads.
		"far": &patched{codectest.Full(100<<20, 1), []int64{0, 40, 700, 900, 901}},
	} {
		t.Run(name, func(t *testing.T) {
			w := &watch{t: t}
			size, err := Compress(context.Background(), w, d, 2)
			if err != nil {
				t.Fatal(err)
			}
			sum := int64(0)
			for _, r := range w.written {
				sum += r.Len
			}
			cover := codectest.New("cover", size, 0, w.written...).Runs()
			if len(cover) != 1 || cover[0].Len != size || sum != size {
				t.Errorf("%d bytes written, which cover %v, want the %d bytes of the file", sum, cover, size)
			}
		})
	}
}

// patched is a disk of which some clusters hold one byte value only.
type patched struct {
	codec.Disk
	clusters []int64
}

func (d *patched) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := d.Disk.ReadAt(ctx, p, off)
	for _, c := range d.clusters {
		for at := max(off, c<<16); at < min(off+int64(n), (c+1)<<16); at++ {
			p[at-off] = 'x'
		}
	}
	return n, err
}

// What is placed never overlaps, and payloads waste less than a cluster each
// time that they are left behind.
func TestPlaces(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	p := newPlaces()
	var got []codectest.Range
	var used, gaps int64
	for i := range 20000 {
		n := uint16(1 + r.IntN(worthLen))
		if r.IntN(3) == 0 || i/1000%2 == 1 {
			n = storedPlain
		}
		was := p.pack
		off, gap := p.place(n)
		long := int64(n)
		if n == storedPlain {
			long = layCluster
			if off%layCluster != 0 {
				t.Fatalf("plain cluster at %#x", off)
			}
		}
		if gap > 0 {
			got = append(got, codectest.Range{Off: was, Len: gap})
		}
		got = append(got, codectest.Range{Off: off, Len: long})
		used, gaps = used+long, gaps+gap
	}
	got = append(got, codectest.Range{Off: p.pack, Len: codec.Up(p.pack, layCluster) - p.pack})
	gaps += got[len(got)-1].Len
	runs := codectest.New("", p.next, 0, got...).Runs()
	if len(runs) != 1 || runs[0] != (codectest.Range{Off: layCluster, Len: p.next - layCluster}) || used+gaps != p.next-layCluster {
		t.Errorf("%d bytes used and %d left out cover %v of %d", used, gaps, runs, p.next)
	}
	if gaps > used/20 {
		t.Errorf("%d bytes are left out for %d used", gaps, used)
	}
}

// A huge disk costs what it holds: in reads, memory and length.
func TestCompressSparse(t *testing.T) {
	for _, tt := range []struct {
		d       *codectest.Disk
		l1, rt  int64 // clusters
		mallocs uint64
	}{
		{codectest.Scattered(2<<40, 20, 9), 1, 1, 40 << 20},
		{codectest.LastSector(layMax), 512, 1, 20 << 20},
		{codectest.Empty(layMax), 512, 1, 20 << 20},
	} {
		t.Run(tt.d.Name, func(t *testing.T) {
			w := &watch{t: t}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			size, err := Compress(context.Background(), w, tt.d, 2)
			runtime.ReadMemStats(&after)
			if err != nil {
				t.Fatal(err)
			}
			var data int64
			for _, r := range tt.d.Runs() {
				data += codec.Ceil(r.Off+r.Len, layCluster) - r.Off/layCluster
			}
			if n := tt.d.BytesRead(); n > data*layCluster {
				t.Errorf("%d bytes read of %d clusters of data", n, data)
			}
			if limit := (1 + data + int64(len(tt.d.Runs())) + tt.l1 + tt.rt + 1) * layCluster; size > limit {
				t.Errorf("%d bytes, want at most %d", size, limit)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > tt.mallocs {
				t.Errorf("%d bytes allocated, want at most %d", n, tt.mallocs)
			}
		})
	}
}

// The tables of a file of many refcount blocks, of which the data are left out:
// QEMU counts the same.
func TestTablesOfManyClusters(t *testing.T) {
	const tib = 1 << 40
	f, err := os.Create(filepath.Join(t.TempDir(), "img.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := rand.New(rand.NewPCG(11, 12))
	im := newWriter(f, 6*tib) // of which the L1 table takes two clusters
	for c := int64(0); c < codec.Ceil(6*tib, layCluster); c++ {
		n := uint16(1 + r.IntN(worthLen))
		switch r.IntN(4) {
		case 0:
			n = storedPlain
		case 1:
			n = 15
		}
		im.put(c, n)
		if r.IntN(300) == 0 {
			c += 1 << r.IntN(20) // a hole
		}
	}
	size, err := im.finish()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes, %d refcount blocks, %d L2 tables", size, len(im.counts), len(im.groups))
	if len(im.counts) < 3 {
		t.Errorf("%d refcount blocks are not many", len(im.counts))
	}
	if out := codectest.Exec(t, "qemu-img", "check", "-f", "qcow2", f.Name()); !strings.Contains(out, "No errors were found") {
		t.Errorf("qemu-img check: %s", out)
	}
	open(t, codectest.File(t, f.Name()))
}

func TestRefTableOfManyBlocks(t *testing.T) {
	p := plan{bits: layBits, rcb: 5, rcbLen: layPerL2 + 2}
	b := make([]byte, layCluster)
	for i, want := range map[int64][]int64{
		0: {5, 6},
		1: {5 + layPerL2, 6 + layPerL2, 0},
		2: {0},
	} {
		clear(b)
		fillRefTable(b, i, &p)
		for k, w := range want {
			if got := be64(b[8*k:]); got != uint64(w)*layCluster {
				t.Errorf("entry %d of cluster %d: %#x, want %#x", k, i, got, w*layCluster)
			}
		}
	}
}
