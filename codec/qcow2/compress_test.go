package qcow2

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"imagefs/codec"
	"imagefs/codec/codectest"
	"imagefs/codec/raw"
)

// compress compresses d to a file of the test.
func compress(t testing.TB, d codec.Disk, workers int) (path string) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "img.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := Compress(context.Background(), f, d, workers)
	if err != nil {
		t.Fatalf("Compress: %v", err)
	}
	if fi, err := f.Stat(); err != nil || fi.Size() != size {
		t.Fatalf("Compress returned %d bytes, the file has %d: %v", size, fi.Size(), err)
	}
	return f.Name()
}

func rawDisk(t testing.TB, b []byte) codec.Disk {
	t.Helper()
	d, err := raw.Format.Open(context.Background(), codectest.Bytes(b))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// tiled is a disk of nothing but data: text-like, random and zero clusters in
// turns of every length, and the last one partial.
func tiled(clusters int) []byte {
	b := make([]byte, clusters<<16-777)
	r := rand.New(rand.NewPCG(7, 8))
	for i := 0; i < clusters; {
		kind, n := r.IntN(4), 1+r.IntN(6)
		for ; n > 0 && i < clusters; n, i = n-1, i+1 {
			p := b[i<<16 : min((i+1)<<16, len(b))]
			switch kind {
			case 0: // stays zero
			case 1:
				for j := range p {
					p[j] = byte(r.Uint32())
				}
			case 2:
				for j := range p {
					p[j] = "0123456789abcdef"[r.Uint32()%16]
				}
			case 3:
				for j := range p {
					p[j] = byte(i)
				}
			}
		}
	}
	return b
}

// disks are what is compressed and read by all readers.
func disks(t testing.TB) map[string]codec.Disk {
	const mib, tib = 1 << 20, 1 << 40
	m := map[string]codec.Disk{
		"mixed":             rawDisk(t, sample(6<<20+1536)),
		"tiled":             rawDisk(t, tiled(300)),
		"zeros":             rawDisk(t, make([]byte, 3*mib)),
		"1 byte":            rawDisk(t, []byte{7}),
		"constant clusters": rawDisk(t, bytes.Repeat([]byte("x"), 70*mib)),
	}
	for _, d := range []*codectest.Disk{
		codectest.Empty(0),
		codectest.Empty(1),
		codectest.Empty(300 << 30),
		codectest.Full(511, 1),
		codectest.Full(513, 1).Soft(),
		codectest.Full(64<<10, 1),
		codectest.Full(64<<10+1, 1).Soft(),
		codectest.Example(),
		codectest.Full(5*mib, 1).Soft(),
		codectest.Full(3*mib+1001, 2),
		codectest.LastSector(513*mib + 513),
		codectest.Alternating(9*mib, 64<<10).Soft(),
		codectest.Alternating(4*mib, 4<<10).Soft(),
		codectest.Scattered(2*tib+512, 60, 4).Soft(),
		codectest.New("last cluster of a group", 3<<30, 3, codectest.Range{Off: 1<<29 - 1, Len: 1}, codectest.Range{Off: 3<<30 - 70000, Len: 70000}),
	} {
		m[d.Name] = d
	}
	return m
}

func TestCompressReadsBack(t *testing.T) {
	for name, d := range disks(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := open(t, codectest.File(t, compress(t, d, 2)))
			if want := codec.Up(d.Size(), 512); got.Size() != want {
				t.Errorf("size %d, want %d", got.Size(), want)
			}
			if err := codectest.Same(got, d); err != nil {
				t.Error(err)
			}
		})
	}
}

// QEMU finds every refcount right and reads the same bytes.
func TestCompressReaders(t *testing.T) {
	codectest.Tool(t, "qemu-img")
	for name, d := range disks(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			img := compress(t, d, 2)
			if out := codectest.Exec(t, "qemu-img", "check", "-f", "qcow2", img); !strings.Contains(out, "No errors were found") {
				t.Errorf("qemu-img check: %s", out)
			}
			path := filepath.Join(t.TempDir(), "raw")
			codectest.WriteFile(t, path, d)
			codectest.Exec(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", path, img)
			var info struct {
				Size     int64 `json:"virtual-size"`
				Cluster  int64 `json:"cluster-size"`
				Dirty    bool  `json:"dirty-flag"`
				Specific struct {
					Data struct {
						Compat      string
						Compression string `json:"compression-type"`
						Refcount    int    `json:"refcount-bits"`
						Corrupt     bool
					}
				} `json:"format-specific"`
			}
			if err := json.Unmarshal([]byte(codectest.Exec(t, "qemu-img", "info", "-f", "qcow2", "--output=json", img)), &info); err != nil {
				t.Fatal(err)
			}
			if f := info.Specific.Data; info.Size != codec.Up(d.Size(), 512) || info.Cluster != layCluster || info.Dirty ||
				f.Compat != "1.1" || f.Compression != "zstd" || f.Refcount != 16 || f.Corrupt {
				t.Errorf("qemu-img info: %+v", info)
			}
		})
	}
}

// The bytes depend on nothing but the disk's.
func TestCompressIsDeterministic(t *testing.T) {
	b := tiled(400 / codectest.Thin(4))
	want, err := os.ReadFile(compress(t, rawDisk(t, b), 1))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		d       codec.Disk
		workers int
	}{
		{"again", rawDisk(t, b), 1},
		{"3 workers", rawDisk(t, b), 3},
		{"16 workers", rawDisk(t, b), 16},
		{"a worker per processor", rawDisk(t, b), 0},
		{"a map of 4 KiB blocks", &mapped4K{rawDisk(t, b), b}, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := os.ReadFile(compress(t, tt.d, tt.workers))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("other bytes than from one worker: %d, want %d of them", len(got), len(want))
			}
		})
	}
}

// mapped4K is a disk in memory whose map leaves out blocks of zeros of 4 KiB.
type mapped4K struct {
	codec.Disk
	b []byte
}

func (d *mapped4K) Extents(_ context.Context, off, n int64) iter.Seq2[codec.Extent, error] {
	return func(yield func(codec.Extent, error) bool) {
		zero := func(at int64) bool { return codec.Empty(d.b[at:min(at+4096, d.Size())]) }
		for end := off + n; off < end; {
			to := off
			for to < end && zero(to) == zero(off) {
				to = min(to+4096, end)
			}
			if !yield(codec.Extent{Off: off, Len: to - off, Zero: zero(off)}, nil) {
				return
			}
			off = to
		}
	}
}

// What does not shrink is stored plain, on a cluster; zeros are no cluster.
func TestCompressStoresPlain(t *testing.T) {
	b := tiled(200)
	img, err := os.ReadFile(compress(t, rawDisk(t, b), 2))
	if err != nil {
		t.Fatal(err)
	}
	l2 := be64(img[be64(img[40:]):]) & entryOffset
	for i := range 200 {
		cluster := b[i<<16 : min((i+1)<<16, len(b))]
		e, kind := be64(img[int(l2)+8*i:]), "compressed"
		switch {
		case e == 0:
			kind = "hole"
		case e&entryCompressed == 0:
			kind = "plain"
			if off := e &^ entryCopied; off%layCluster != 0 || !bytes.Equal(img[off:off+uint64(len(cluster))], cluster) {
				t.Errorf("cluster %d: entry %#x, or other bytes there", i, e)
			}
		}
		want := "compressed"
		if codec.Empty(cluster) {
			want = "hole"
		} else if len(deflate(t, cluster, 1)) >= len(cluster) {
			want = "plain"
		}
		if kind != want {
			t.Errorf("cluster %d is stored as %s, want %s", i, kind, want)
		}
	}
}

func TestCompressTooLarge(t *testing.T) {
	w := &watch{t: t}
	_, err := Compress(context.Background(), w, codectest.Empty(layMax+1), 1)
	if !errors.Is(err, codec.ErrTooLarge) || !strings.Contains(err.Error(), "2251799813685249") || len(w.written) > 0 {
		t.Errorf("error %v after %d writes, want too large and the size", err, len(w.written))
	}
}

// Reading stays ahead of writing by the batches that there are.
func TestCompressReadsAheadBounded(t *testing.T) {
	const workers = 3
	d := codectest.Full(64<<20, 5)
	w := &watch{t: t}
	w.each = func(off int64) {
		// Plain clusters: a place in the file is one on the disk, and one further.
		if ahead := d.BytesRead() - off; off != 0 && ahead > (batchesPerWorker*workers+1)*batchLen {
			t.Errorf("%d bytes are read as those at %d are written", d.BytesRead(), off)
		}
	}
	if _, err := Compress(context.Background(), w, d, workers); err != nil {
		t.Fatal(err)
	}
}

// failing is a disk that fails or hangs once it is read at a place.
type failing struct {
	codec.Disk
	at   int64
	hang bool // all reads from there on wait until they are given up
	open atomic.Int64
}

func (d *failing) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	d.open.Add(1)
	defer d.open.Add(-1)
	if off <= d.at && d.at < off+int64(len(p)) {
		return 0, codectest.ErrBoom
	}
	if d.hang && off > d.at {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	return d.Disk.ReadAt(ctx, p, off)
}

// short is a disk that is shorter than it says.
type short struct{ *codectest.Disk }

func (d short) ReadAt(context.Context, []byte, int64) (int, error) { return 0, io.EOF }

func TestCompressFails(t *testing.T) {
	const mib = 1 << 20
	noExtents := codectest.Full(9*mib, 1)
	noExtents.FailExtents = codectest.ErrBoom
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	background := context.Background()
	for _, tt := range []struct {
		name string
		ctx  context.Context
		d    codec.Disk
		w    error
		err  error
		text string
	}{
		{"first read", background, &failing{Disk: codectest.Full(9*mib, 1)}, nil, codectest.ErrBoom, "read disk at 0x0"},
		{"read in the middle", background, &failing{Disk: codectest.Full(90*mib, 1), at: 40 * mib}, nil, codectest.ErrBoom, "read disk at 0x2800000"},
		{"last read", background, &failing{Disk: codectest.Full(9*mib+5, 1), at: 9*mib + 4}, nil, codectest.ErrBoom, "read disk at 0x900000"},
		{"reads behind it hang", background, &failing{Disk: codectest.Full(90*mib, 1), at: 40 * mib, hang: true}, nil, codectest.ErrBoom, "read disk at 0x2800000"},
		{"short disk", background, short{codectest.Full(9*mib, 1)}, nil, io.ErrUnexpectedEOF, "read disk at 0x0"},
		{"extents", background, noExtents, nil, codectest.ErrBoom, "extents of the disk"},
		{"write", background, codectest.Full(90*mib, 1), io.ErrShortBuffer, io.ErrShortBuffer, "at 0x10000"},
		{"write of the tables", background, codectest.Empty(9 * mib), io.ErrShortBuffer, io.ErrShortBuffer, "write 65536 bytes of qcow2 at 0x10000"},
		{"cancelled before", cancelled, codectest.Full(90*mib, 1), nil, context.Canceled, ""},
		{"empty, cancelled before", cancelled, codectest.Empty(1 << 40), nil, context.Canceled, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := runtime.NumGoroutine()
			_, err := Compress(tt.ctx, &watch{t: t, err: tt.w}, tt.d, 4)
			if !errors.Is(err, tt.err) || !strings.Contains(fmt.Sprint(err), tt.text) {
				t.Errorf("error %v, want %v with %q", err, tt.err, tt.text)
			}
			if f, ok := tt.d.(*failing); ok && f.open.Load() != 0 {
				t.Errorf("%d reads are not over", f.open.Load())
			}
			noMoreThan(t, before)
		})
	}
}

// noMoreThan waits for goroutines that have nothing to do any more to be gone.
func noMoreThan(t *testing.T, n int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > n; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), n)
		}
	}
}

// A cancelled context ends it while every worker is in a read.
func TestCompressCancelled(t *testing.T) {
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	d := &failing{Disk: codectest.Full(90<<20, 1), at: -1, hang: true}
	go func() {
		for d.open.Load() < 2 {
			runtime.Gosched()
		}
		cancel()
	}()
	_, err := Compress(ctx, &watch{t: t}, d, 2)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that it was cancelled", err)
	}
	if n := d.open.Load(); n != 0 {
		t.Errorf("%d reads are not over", n)
	}
	noMoreThan(t, before)
}

func BenchmarkCompress(b *testing.B) {
	d := rawDisk(b, sample(64<<20))
	for _, workers := range []int{1, 0} {
		b.Run(fmt.Sprintf("workers=%d", workers), func(b *testing.B) {
			b.SetBytes(d.Size())
			for b.Loop() {
				size, err := Compress(context.Background(), discard{}, d, workers)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(size)/float64(d.Size()), "ratio")
			}
		})
	}
}

type discard struct{}

func (discard) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
