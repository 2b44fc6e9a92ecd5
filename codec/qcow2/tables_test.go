package qcow2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

// tableReads is how many reads of tables there are at a time.
const tableReads = 8

// tabled is a source of size bytes that holds an image of n L2 tables, one
// every stride bytes from 4 MiB on, with one cluster of its own each, right
// behind it. It counts reads, and how many there are at a time.
type tabled struct {
	size, stride, n int64
	delay           time.Duration
	meet            int64 // reads of tables wait until so many met

	reads, bytes, now, most atomic.Int64
}

func (s *tabled) Size() int64 { return s.size }

func (s *tabled) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	s.reads.Add(1)
	s.bytes.Add(int64(len(p)))
	now := s.now.Add(1)
	defer s.now.Add(-1)
	for most := s.most.Load(); now > most && !s.most.CompareAndSwap(most, now); most = s.most.Load() {
	}
	for limit := time.Now().Add(10 * time.Second); off >= 4<<20 && s.most.Load() < s.meet && time.Now().Before(limit); {
		time.Sleep(time.Millisecond)
	}
	if s.delay > 0 {
		select {
		case <-time.After(s.delay):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	const c = 1 << 16
	clear(p)
	put := func(at int64, v uint64) { // what of 8 bytes at at lies in p
		var b [8]byte
		put64(b[:], 0, v)
		for i, x := range b {
			if j := at + int64(i) - off; j >= 0 && j < int64(len(p)) {
				p[j] = x
			}
		}
	}
	if off < c {
		h := (&plan{bits: layBits, l1: 1}).header(s.n << 29)
		copy(p, h[min(off, int64(len(h))):])
	}
	for i := max(0, (off-c)/8); i < s.n && c+8*i < off+int64(len(p)); i++ {
		put(c+8*i, uint64(4<<20+i*s.stride))
	}
	for i := max(0, (off-4<<20)/s.stride-1); i < s.n && 4<<20+i*s.stride < off+int64(len(p)); i++ {
		at := 4<<20 + i*s.stride
		put(at+8*(i%layPerL2), uint64(at+c))
		put(at+c, uint64(i+1))
	}
	if n := s.size - off; n < int64(len(p)) {
		return int(max(n, 0)), io.EOF
	}
	return len(p), nil
}

func TestTablesAreReadTogether(t *testing.T) {
	for _, tt := range []struct {
		name             string
		n, stride        int64
		maxReads, atOnce int64
	}{
		{"side by side", 256, 2 << 16, 40, 2},
		{"apart", 300, 512 << 20, 304, tableReads},
		{"one", 1, 2 << 16, 4, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			src := &tabled{size: 8<<20 + tt.n*tt.stride, stride: tt.stride, n: tt.n, meet: tt.atOnce}
			d := open(t, src)
			if n := src.reads.Load(); n > tt.maxReads {
				t.Errorf("%d reads, want at most %d", n, tt.maxReads)
			}
			if n := src.most.Load(); n < tt.atOnce || n > tableReads {
				t.Errorf("%d reads at a time, want %d to %d", n, tt.atOnce, tableReads)
			}
			b := make([]byte, 8)
			for i := range tt.n {
				off := i<<29 + i%layPerL2<<16
				if _, err := d.ReadAt(context.Background(), b, off); err != nil || be64(b) != uint64(i+1) {
					t.Fatalf("table %d: %x, %v", i, b, err)
				}
			}
			var data int64
			for e := range d.Extents(context.Background(), 0, d.Size()) {
				if !e.Zero {
					data += e.Len
				}
			}
			if data != tt.n<<16 {
				t.Errorf("%d bytes of data, want %d", data, tt.n<<16)
			}
		})
	}
}

// However many reads fail, none outlives Open.
func TestTablesErrors(t *testing.T) {
	for after := range int64(40) {
		src := &tabled{size: 1 << 40, stride: 512 << 20, n: 60, delay: time.Microsecond}
		_, err := Format.Open(context.Background(), codectest.Faulty(src, codectest.ErrBoom, after))
		if !errors.Is(err, codectest.ErrBoom) {
			t.Errorf("after %d reads: %v", after, err)
		}
		if n := src.now.Load(); n != 0 {
			t.Errorf("after %d reads: %d reads go on", after, n)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	src := &tabled{size: 1 << 40, stride: 512 << 20, n: 1000, delay: 3 * time.Millisecond}
	if _, err := Format.Open(ctx, src); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("cancelled: %v", err)
	}
	if n := src.now.Load(); n != 0 {
		t.Errorf("cancelled: %d reads go on", n)
	}
}

// An L2 entry that is damaged far into an image is found.
func TestTablesDamage(t *testing.T) {
	b, err := codectest.ReadAll(layout(t, codectest.New("groups", 3<<30, 1, codectest.Range{Off: 5, Len: 1}, codectest.Range{Off: 3<<30 - 1, Len: 1})))
	if err != nil {
		t.Fatal(err)
	}
	at := int(be64(b[be64(b[40:])+8*5:])&entryOffset) + 8*(layPerL2-1)
	want := be64(b[at:])
	for _, e := range []uint64{want | 2, want + 512, 1 << 55, 5 << 16} {
		bad := bytes.Clone(b)
		put64(bad, at, e)
		_, err := Format.Open(context.Background(), codectest.Bytes(bad))
		if !errors.Is(err, codec.ErrCorrupt) {
			t.Errorf("entry %#x: %v", e, err)
		}
	}
}

// BenchmarkOpen opens an image of 1 TiB, all allocated.
func BenchmarkOpen(b *testing.B) {
	for _, size := range []int64{64 << 30, 1 << 40} {
		b.Run(fmt.Sprintf("%dGiB", size>>30), func(b *testing.B) {
			f := layout(b, codectest.Full(size, 1))
			b.ReportAllocs()
			for b.Loop() {
				open(b, f)
			}
		})
	}
}
