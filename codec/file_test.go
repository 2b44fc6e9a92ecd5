package codec_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

// render is a file and what it must show.
type render struct {
	f    *codec.File
	want []byte
	data []bool // per byte: not known to be zero
}

func (v *render) add(b []byte, data bool) {
	v.want = append(v.want, b...)
	for range b {
		v.data = append(v.data, data)
	}
}

// guest adds the bytes of d in [off, off+n), zeros behind its end.
func (v *render) guest(t testing.TB, d *codectest.Disk, off, n int64) {
	t.Helper()
	b := make([]byte, n)
	if off < d.Size() {
		if _, err := d.ReadAt(context.Background(), b, off); err != nil && err != io.EOF {
			t.Fatal(err)
		}
	}
	v.want = append(v.want, b...)
	for i := range n {
		in := false
		for _, r := range d.Runs() {
			in = in || off+i >= r.Off && off+i < r.Off+r.Len
		}
		v.data = append(v.data, in)
	}
}

// newRender is a file of random segments of every kind.
func newRender(t testing.TB, r *rand.Rand) *render {
	v := &render{f: new(codec.File)}
	for range r.IntN(12) {
		n := r.Int64N(2000)
		switch r.IntN(7) {
		case 0:
			b := make([]byte, n)
			for i := range b {
				b[i] = byte(r.Uint32())
			}
			v.f.Literal(b)
			v.add(b, true)
		case 1:
			v.f.Zero(n)
			v.add(make([]byte, n), false)
		case 2:
			v.f.ZeroTo(v.f.Size() + n)
			v.add(make([]byte, n), false)
		case 3:
			d := randomDisk(r, 1+r.Int64N(3000))
			off := r.Int64N(4000)
			v.f.Guest(d, off, n)
			v.guest(t, d, off, n)
		case 4, 5:
			d := randomDisk(r, 1+r.Int64N(20000))
			block := int64(512) << r.IntN(3)
			if r.IntN(8) == 0 {
				block = 128 << 10 // shows its holes between prefixes too
			}
			p := &codec.Packed{Disk: d, Map: newMap(t, d, block)}
			if r.IntN(2) == 0 {
				p.Prefix = bytes.Repeat([]byte{0xf7}, 1+r.IntN(30))
			}
			if p.Stride() != block+int64(len(p.Prefix)) || p.Len() != p.Map.Count()*p.Stride() {
				t.Fatalf("stride %d, length %d", p.Stride(), p.Len())
			}
			v.f.Append(p.Len(), p)
			for i, set := range naive(d, block) {
				if !set {
					continue
				}
				v.add(p.Prefix, true)
				from := len(v.data)
				v.guest(t, d, int64(i)*block, block)
				for k := from; k < len(v.data) && p.Prefix != nil && block < 128<<10; k++ {
					v.data[k] = true
				}
			}
		case 6:
			size := 1 + r.IntN(16)
			put := func(b []byte, i int64) {
				if len(b) != size || cap(b) != size {
					t.Errorf("entry of %d bytes, capacity %d, want %d", len(b), cap(b), size)
				}
				for k := range b {
					b[k] = byte(i*31) + byte(k)
				}
			}
			n -= r.Int64N(3) // not always whole entries
			v.f.Append(n, &codec.Entries{Size: size, Put: put})
			var e []byte
			for i := int64(0); int64(len(e)) < n; i++ {
				one := make([]byte, size)
				put(one, i)
				e = append(e, one...)
			}
			v.add(e[:max(n, 0)], true)
		}
	}
	return v
}

func TestFileEqualsItsRender(t *testing.T) {
	r := random(t)
	for range 300 {
		v := newRender(t, r)
		size := int64(len(v.want))
		if v.f.Size() != size {
			t.Fatalf("file of %d bytes, want %d", v.f.Size(), size)
		}
		if size == 0 {
			continue
		}
		checkReads(t, r, v.f, v.want, 40)
		for range 15 {
			off, n := r.Int64N(size+40)-20, r.Int64N(size+40)
			if got, want := gather(t, v.f, off, n), naiveExtents(v.data, 1, size, off, n); !slices.Equal(got, want) {
				t.Fatalf("extents of [%d, +%d) of %d: %v, want %v", off, n, size, got, want)
			}
		}
		// A walk may stop anywhere.
		stop := r.IntN(4)
		for range v.f.Extents(context.Background(), 0, size) {
			if stop--; stop < 0 {
				break
			}
		}
	}
}

func TestFileOfNothing(t *testing.T) {
	f := new(codec.File)
	f.Literal(nil)
	f.Zero(0)
	f.ZeroTo(0)
	if n, err := f.ReadAt(context.Background(), make([]byte, 3), 0); n != 0 || err != io.EOF {
		t.Errorf("read: %d, %v, want 0, %v", n, err, io.EOF)
	}
	if es := gather(t, f, 0, 10); es != nil {
		t.Errorf("extents %v, want none", es)
	}
}

func TestZeroToBehindPanics(t *testing.T) {
	f := new(codec.File)
	f.Zero(10)
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	f.ZeroTo(9)
}

func TestFileErrors(t *testing.T) {
	ctx := context.Background()
	d := codectest.Full(4096, 1)
	f := new(codec.File)
	f.Literal([]byte("head"))
	f.Guest(d, 0, 4096)
	d.FailRead = codectest.ErrBoom
	if n, err := f.ReadAt(ctx, make([]byte, 100), 0); n != 4 || !errors.Is(err, codectest.ErrBoom) {
		t.Errorf("read over a failing disk: %d, %v, want 4 and its error", n, err)
	}
	// The end of a disk that is shorter than it said is no end of the file.
	for _, err := range []error{io.EOF, nil} {
		f = new(codec.File)
		f.Guest(shortDisk{codectest.Full(4096, 1), err}, 0, 4096)
		if n, got := f.ReadAt(ctx, make([]byte, 100), 0); n != 0 || got != io.ErrUnexpectedEOF {
			t.Errorf("read of a disk that ends with %v: %d, %v, want 0, %v", err, n, got, io.ErrUnexpectedEOF)
		}
	}
	// What was known before an error of the extents comes out before it.
	d = codectest.Full(4096, 1)
	d.FailExtents = codectest.ErrBoom
	f = new(codec.File)
	f.Zero(10)
	f.Guest(d, 0, 4096)
	f.Zero(10)
	var es []codec.Extent
	var errs []error
	for e, err := range f.Extents(ctx, 0, f.Size()) {
		if err != nil {
			errs = append(errs, err)
		} else {
			es = append(es, e)
		}
	}
	if len(es) != 1 || es[0] != (codec.Extent{Len: 10, Zero: true}) || len(errs) != 1 || errs[0] != codectest.ErrBoom {
		t.Errorf("extents over a failing disk: %v, %v", es, errs)
	}
}

// shortDisk reads half of what is asked.
type shortDisk struct {
	codec.Disk
	err error
}

func (d shortDisk) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, _ := d.Disk.ReadAt(ctx, p[:len(p)/2], off)
	return n, d.err
}

func TestPackedReadsRunsInOneCall(t *testing.T) {
	d := codectest.New("", 1<<20, 1, codectest.Range{Off: 64 << 10, Len: 256 << 10}, codectest.Range{Off: 640 << 10, Len: 64 << 10})
	p := &codec.Packed{Disk: d, Map: newMap(t, d, 64<<10)}
	f := new(codec.File)
	f.Append(p.Len(), p)
	if n, err := f.ReadAt(context.Background(), make([]byte, f.Size()), 0); int64(n) != f.Size() {
		t.Fatal(n, err)
	}
	if d.Reads() != 2 {
		t.Errorf("%d reads of the disk, want 2: one for each run", d.Reads())
	}
}

func TestFilesOfTebibytesAreQuick(t *testing.T) {
	// A full disk of 2 TiB: every read and every question of the map takes
	// steps in the order of what is asked, so many of them take no time.
	d := codectest.Full(2<<40, 1)
	m := newMap(t, d, 64<<10)
	for _, prefix := range [][]byte{nil, {1, 2, 3}} {
		p := &codec.Packed{Disk: d, Map: m, Prefix: prefix}
		f := new(codec.File)
		f.Append(p.Len(), p)
		r := random(t)
		buf := make([]byte, 512)
		for range 20000 {
			if _, err := f.ReadAt(context.Background(), buf, r.Int64N(f.Size()-512)); err != nil {
				t.Fatal(err)
			}
		}
		for range 100 {
			if es := gather(t, f, 0, f.Size()); len(es) != 1 {
				t.Fatalf("%d extents, want 1", len(es))
			}
			if prefix == nil { // this is one walk over 4 MiB of map
				break
			}
		}
	}
}

func TestReadFull(t *testing.T) {
	ctx := context.Background()
	b := []byte("0123456789")
	for _, c := range []struct {
		src  codec.Source
		off  int64
		n    int
		want error
	}{
		{codectest.Bytes(b), 0, 10, nil},
		{codectest.Bytes(b), 10, 0, nil},
		{codectest.Bytes(b), 3, 7, nil},
		{codectest.Bytes(b), 3, 8, codec.ErrCorrupt},
		{codectest.Bytes(b), 11, 0, codec.ErrCorrupt},
		{codectest.Bytes(b), -1, 1, codec.ErrCorrupt},
		{codectest.Bytes(b), 1<<63 - 1, 1, codec.ErrCorrupt},
		{codectest.Faulty(codectest.Bytes(b), codectest.ErrBoom, 0), 0, 1, codectest.ErrBoom},
		{liar{codectest.Bytes(b), 20}, 5, 10, io.ErrUnexpectedEOF},
	} {
		p := make([]byte, c.n)
		err := codec.ReadFull(ctx, c.src, p, c.off, "the table")
		if !errors.Is(err, c.want) {
			t.Errorf("%d bytes at %d: %v, want %v", c.n, c.off, err, c.want)
		}
		if c.want == nil && !bytes.Equal(p, b[c.off:]) {
			t.Errorf("%d bytes at %d: %q", c.n, c.off, p)
		}
	}
}

func TestRounding(t *testing.T) {
	for _, c := range [][4]int64{{0, 512, 0, 0}, {1, 512, 1, 512}, {512, 512, 1, 512}, {513, 512, 2, 1024}, {codec.MaxSize, 1 << 32, 1<<31 - 1, codec.MaxSize}, {codec.MaxSize - 1, 512, codec.MaxSize / 512, codec.MaxSize}} {
		if q, u := codec.Ceil(c[0], c[1]), codec.Up(c[0], c[1]); q != c[2] || u != c[3] {
			t.Errorf("%d by %d: %d, %d, want %d, %d", c[0], c[1], q, u, c[2], c[3])
		}
	}
}

// FuzzFile reads anywhere in a file of every kind of segment.
func FuzzFile(f *testing.F) {
	f.Add(uint64(1), int64(0), uint16(100))
	f.Add(uint64(2), int64(-1), uint16(0))
	f.Add(uint64(3), int64(1<<62), uint16(65535))
	f.Fuzz(func(t *testing.T, seed uint64, off int64, n uint16) {
		v := newRender(t, rand.New(rand.NewPCG(seed, 1)))
		size := int64(len(v.want))
		p := make([]byte, n)
		got, err := v.f.ReadAt(context.Background(), p, off)
		if off < 0 {
			if err == nil || got != 0 {
				t.Fatalf("read at %d: %d, %v", off, got, err)
			}
			return
		}
		want := v.want[min(off, size):]
		want = want[:min(len(want), len(p))]
		if got != len(want) || !bytes.Equal(p[:got], want) {
			t.Fatalf("read of %d bytes at %d of %d: %d, %v, or wrong bytes", n, off, size, got, err)
		}
		if es := gather(t, v.f, off, int64(n)); !slices.Equal(es, naiveExtents(v.data, 1, size, off, int64(n))) {
			t.Fatalf("extents of [%d, +%d) of %d: %v", off, n, size, es)
		}
	})
}

// FuzzMap makes a map of any runs and asks for any block.
func FuzzMap(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 5, 0, 0, 0}, uint32(1<<20), uint8(3), int64(7))
	f.Add([]byte{}, uint32(0), uint8(0), int64(-1))
	f.Fuzz(func(t *testing.T, runs []byte, size uint32, shift uint8, i int64) {
		size %= 1 << 22
		block := int64(512) << (shift % 8)
		var rs []codectest.Range
		for ; len(runs) >= 8; runs = runs[8:] {
			rs = append(rs, codectest.Range{Off: int64(binary.LittleEndian.Uint32(runs)), Len: int64(binary.LittleEndian.Uint32(runs[4:]))})
		}
		d := codectest.New("", int64(size), 1, rs...)
		m, want := newMap(t, d, block), naive(d, block)
		checkMap(t, m, want, int64(size))
		if got, exp := m.Has(i), i >= 0 && i < int64(len(want)) && want[i]; got != exp {
			t.Fatalf("Has(%d) = %v, want %v", i, got, exp)
		}
		if r := m.Rank(i); r < 0 || r > m.Count() {
			t.Fatalf("Rank(%d) = %d of %d", i, r, m.Count())
		}
		if k := m.Select(i); (k < 0) != (i < 0 || i >= m.Count()) {
			t.Fatalf("Select(%d) = %d of %d", i, k, m.Count())
		}
	})
}
