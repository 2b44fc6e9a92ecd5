package zvhd

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
	"imagefs/codec/qcow2"
)

// indexOf builds the index of d, writes it, and reads it for d.
func indexOf(t *testing.T, d codec.Disk) []byte {
	t.Helper()
	x, err := codec.BuildIndex(t.Context(), d, 2, nil)
	if err != nil || x == nil {
		t.Fatalf("%v, %v", x, err)
	}
	defer x.Close()
	var w bytes.Buffer
	if n, err := x.WriteTo(&w); err != nil || n != x.Size() {
		t.Fatalf("%d bytes of %d: %v", n, x.Size(), err)
	}
	return w.Bytes()
}

// TestReadsFarIn: with an index, a first read anywhere takes few records, and
// brings the bytes that it brings without.
func TestReadsFarIn(t *testing.T) {
	const n = 60
	b, lines := chain(t, n)
	index := indexOf(t, codectest.Open(t, Format, codectest.Bytes(b)))
	for _, i := range []int{0, 1, 6, 7, 8, 13, 14, 15, 41, 42, 48, 49, 50, n - 1} {
		src := codectest.Bounded(codectest.Bytes(b), 1<<40, 1<<40)
		d := codectest.Open(t, Format, src)
		x, err := codec.OpenIndex(t.Context(), codectest.Bytes(index), d)
		if err != nil {
			t.Fatal(err)
		}
		d.(codec.Windowed).SetWindows(x.Window)
		before, _ := src.Used()
		p := make([]byte, 1000)
		if m, err := d.ReadAt(t.Context(), p, int64(i)*blockSize); m < len(p) || !bytes.Equal(p[:150], lines[i]) || !codec.Empty(p[150:]) {
			t.Fatalf("block %d: %v, or other bytes", i, err)
		}
		// The blocks decoded are one for each, of 2 MiB.
		if reads, _ := src.Used(); reads-before > 8 {
			t.Errorf("block %d took %d records, want 8 at most", i, reads-before)
		}
	}
}

// TestDamagedIndexCostsTime: windows that are damaged are not used.
func TestDamagedIndexCostsTime(t *testing.T) {
	b, lines := chain(t, 30)
	d := codectest.Open(t, Format, codectest.Bytes(b))
	index := indexOf(t, d)
	index[len(index)-10] ^= 1 // in the last window
	x, err := codec.OpenIndex(t.Context(), codectest.Bytes(index), d)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.Window(t.Context(), 3); !errors.Is(err, codec.ErrCorrupt) {
		t.Errorf("window 3: %v", err)
	}
	if _, err := x.Window(t.Context(), 0); err != nil {
		t.Errorf("window 0: %v", err)
	}
	for _, k := range []int64{-1, 4} {
		if _, err := x.Window(t.Context(), k); !errors.Is(err, codec.ErrCorrupt) {
			t.Errorf("window %d: %v", k, err)
		}
	}
	d.(codec.Windowed).SetWindows(x.Window)
	p := make([]byte, 150)
	if m, err := d.ReadAt(t.Context(), p, 29*blockSize); m < len(p) || !bytes.Equal(p, lines[29]) {
		t.Errorf("%v, or other bytes", err)
	}
	// A store that fails is no damage.
	src := codectest.Faulty(codectest.Bytes(index), codectest.ErrBoom, 1<<40)
	d = codectest.Open(t, Format, codectest.Bytes(b))
	if x, err = codec.OpenIndex(t.Context(), src, d); err != nil {
		t.Fatal(err)
	}
	d.(codec.Windowed).SetWindows(x.Window)
	src.FailAfter(0)
	if _, err := d.ReadAt(t.Context(), p, 29*blockSize); !errors.Is(err, codectest.ErrBoom) {
		t.Errorf("error %v, want the store's", err)
	}
	src.FailAfter(1 << 40)
	if m, err := d.ReadAt(t.Context(), p, 29*blockSize); m < len(p) || !bytes.Equal(p, lines[29]) {
		t.Errorf("after it came back: %v, or other bytes", err)
	}
}

// TestWalkDecodesEveryBlockOnce, whether it stands alone or not, and damage ends it.
func TestWalkDecodesEveryBlockOnce(t *testing.T) {
	want := seams(9*blockSize, 4)
	for i := range 3 {
		noise(want[(1+i)*blockSize : (2+i)*blockSize])
	}
	b := written(t, kindStream, want)
	d := codectest.Open(t, Format, codectest.Bytes(b))
	for _, workers := range []int{1, 3} {
		var mu sync.Mutex
		seen := map[int64]bool{}
		x, err := codec.BuildIndex(t.Context(), d, workers, func(off int64, p []byte) error {
			mu.Lock()
			defer mu.Unlock()
			if seen[off] || !bytes.Equal(p, want[off:min(off+blockSize, int64(len(want)))]) {
				return fmt.Errorf("block at %d: again, or other bytes", off)
			}
			seen[off] = true
			return nil
		})
		if err != nil || x == nil || len(seen) != 9 {
			t.Errorf("%d blocks, %v, %v", len(seen), x, err)
		}
		x.Close()
	}
	boom := errors.New("enough")
	if _, err := codec.BuildIndex(t.Context(), d, 2, func(int64, []byte) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("error %v, want that of the callback", err)
	}
	s := streamOf(d)
	for k := range s.recs {
		if k > 0 && alone(t, s, k) {
			continue // noise, stored as it is: any bytes are as good
		}
		bad := bytes.Clone(b)
		at := s.recs[k].off + recordHead + 40
		copy(bad[at:], bytes.Repeat([]byte{0xff}, 200))
		if _, err := codec.BuildIndex(t.Context(), codectest.Open(t, Format, codectest.Bytes(bad)), 2, nil); !errors.Is(err, codec.ErrCorrupt) {
			t.Errorf("record %d is damaged: %v", k, err)
		}
	}
	src := codectest.Faulty(codectest.Bytes(b), codectest.ErrBoom, 1<<40)
	d = codectest.Open(t, Format, src)
	for n := range int64(9) {
		src.FailAfter(n)
		if _, err := codec.BuildIndex(t.Context(), d, 2, nil); !errors.Is(err, codectest.ErrBoom) {
			t.Errorf("after %d reads: %v", n, err)
		}
	}
}

// TestOwnBlocksNeedNoIndex: they stand alone.
func TestOwnBlocksNeedNoIndex(t *testing.T) {
	d := codectest.Open(t, Format, codectest.Layout(t, Format, codectest.Full(40<<20, 1)))
	if x, err := codec.BuildIndex(t.Context(), d, 2, nil); x != nil || err != nil {
		t.Errorf("%v, %v", x, err)
	}
}

// TestFramesAreHandedOn shows a ZVHD2 of zstd as qcow2.
func TestFramesAreHandedOn(t *testing.T) {
	want := seams(7*blockSize-700*512, 4)
	clear(want[2*blockSize : 3*blockSize])
	o := codectest.Offer(t, Format2, codectest.Bytes(written(t, kindZstd, want)))
	f := codectest.Reframe(t, qcow2.Zstd, qcow2.Format, o)
	if s, _ := o.Streams(t.Context()); s.Coded.Count() != 5 || s.Plain.Count() != 1 {
		t.Errorf("%d blocks are handed on, %d are plain, want 5 and the last", s.Coded.Count(), s.Plain.Count())
	}
	dir := t.TempDir()
	path, raw := filepath.Join(dir, "img.qcow2"), filepath.Join(dir, "raw")
	codectest.WriteFile(t, path, f)
	codectest.WriteFile(t, raw, o.Disk)
	codectest.Check(t, "qcow2", path)
	codectest.Compare(t, "qcow2", path, raw)
	// Our own frames of raw blocks are no shorter than a block.
	o = codectest.Offer(t, Format2, codectest.Layout(t, Format2, codectest.Full(5<<20, 1)))
	codectest.Reframe(t, qcow2.Zstd, qcow2.Format, o)
	if s, _ := o.Streams(t.Context()); s.Coded.Count() != 0 || s.Plain.Count() != 3 {
		t.Errorf("%d of our blocks are handed on, %d are plain", s.Coded.Count(), s.Plain.Count())
	}
}
