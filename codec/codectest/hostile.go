package codectest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime/metrics"
	"slices"
	"testing"

	"imagefs/codec"
)

// victim is a small disk whose laid out file is damaged in every way.
func victim(seed uint64) *Disk {
	return New("victim", 5*mib+512, seed, Range{0, 70 * kib}, Range{3*mib + 4096, 8192}, Range{5 * mib, 512})
}

// image is the file of d, whole.
func (s *suite) image(t *testing.T, d *Disk) []byte {
	t.Helper()
	f := s.layout(t, d)
	if f.Size() > 64*mib {
		t.Fatalf("the file of a disk of %d bytes has %d", d.Size(), f.Size())
	}
	b, err := ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Clean tells whether err is of the three kinds of a refused image.
func Clean(err error) bool {
	return errors.Is(err, codec.ErrFormat) || errors.Is(err, codec.ErrCorrupt) || errors.Is(err, codec.ErrUnsupported)
}

// OpenHostile opens bytes of any origin and reads about in them, as a fuzz
// target does. The error is nil for a clean refusal, and for a disk whose
// extents and reads hold their contract; memory and reads are bounded by the
// length of the file.
func OpenHostile(f codec.Format, b []byte) (codec.Disk, error) {
	ctx := context.Background()
	src := Bounded(Bytes(b), 4000, 4*int64(len(b))+mib)
	before := heapAllocs()
	d, err := f.Open(ctx, src)
	if n, limit := heapAllocs()-before, uint64(16*mib+32*int64(len(b))); n > limit {
		return nil, fmt.Errorf("open allocated %d bytes for a file of %d (error: %v)", n, len(b), err)
	}
	if err != nil {
		if !Clean(err) {
			return nil, fmt.Errorf("open: %q is no clean refusal", err)
		}
		return nil, nil
	}
	if d.Size() < 0 || d.Size() > codec.MaxSize {
		return nil, fmt.Errorf("a disk of %d bytes", d.Size())
	}
	// Some extents, and both ends of each.
	var n int
	buf := make([]byte, 5000)
	end := int64(0)
	for e, err := range d.Extents(ctx, 0, d.Size()) {
		if err != nil {
			return nil, fmt.Errorf("extents: %w", err)
		}
		if e.Off != end || e.Len <= 0 || e.Len > d.Size()-e.Off {
			return nil, fmt.Errorf("extent %+v after %#x on a disk of %#x bytes", e, end, d.Size())
		}
		end = e.Off + e.Len
		if n++; n > 200 {
			break
		}
		if n > 40 {
			continue
		}
		for _, off := range []int64{e.Off, e.Off + e.Len - min(e.Len, 700)} {
			p := buf[:min(int64(len(buf)), d.Size()-off)]
			if m, err := d.ReadAt(ctx, p, off); m < len(p) && !Clean(err) && !errors.Is(err, ErrBudget) {
				return nil, fmt.Errorf("read of %d bytes at %#x: %d, %v", len(p), off, m, err)
			}
			if e.Zero && !codec.Empty(p[:min(int64(len(p)), e.Len, 700)]) && off == e.Off {
				return nil, fmt.Errorf("extent %+v is called zero and is not", e)
			}
		}
	}
	return d, nil
}

func heapAllocs() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// truncated: a file cut short is refused, or shows the same disk. Only of its
// last block may the end read as zeros, since writers leave such files.
func (s *suite) truncated(t *testing.T) {
	if s.headless {
		t.Skip("no header: a shorter file is a shorter disk")
	}
	want := victim(1)
	b := s.image(t, want)
	size := int64(len(b))
	cuts := []int64{
		0, 1, 3, 4, 7, 8, 63, 64, 67, 68, 80, 103, 104, 511, 512, 513, 1023, 1024, 1535, 1536, 4095, 4096,
		65535, 65536, 65540, mib, mib + 512, size - 1, size - 511, size - 512, size - 513, size - 1024, size - 1536, size - 4096, size - 4097, size - 65536,
	}
	for i := int64(1); i < 16; i++ {
		cuts = append(cuts, size*i/16, size*i/16/512*512)
	}
	slices.Sort(cuts)
	for _, cut := range slices.Compact(cuts) {
		if cut < 0 || cut >= size {
			continue
		}
		d, err := OpenHostile(s.open, b[:cut:cut])
		if err != nil {
			t.Errorf("cut to %d of %d bytes: %v", cut, size, err)
			continue
		}
		if d == nil {
			continue
		}
		if lost, err := differences(d, want); err != nil {
			t.Errorf("cut to %d of %d bytes: %v", cut, size, err)
		} else if lost > min(size-cut, 2*mib) {
			t.Errorf("cut to %d of %d bytes: opened, and %d bytes are lost in silence", cut, size, lost)
		}
	}
}

// differences counts the bytes of want that read as zeros in got. Any other
// difference is an error.
func differences(got codec.Disk, want *Disk) (lost int64, err error) {
	a, err := ReadAll(got)
	if err != nil {
		if Clean(err) {
			return 0, nil
		}
		return 0, err
	}
	b, _ := ReadAll(want)
	if len(a) < len(b) {
		return 0, fmt.Errorf("a disk of %d bytes, want %d", len(a), len(b))
	}
	if bytes.Equal(a[:len(b)], b) {
		return 0, nil
	}
	for i := range b {
		if a[i] == b[i] {
			continue
		}
		if a[i] != 0 {
			return 0, fmt.Errorf("byte %#x is %#02x, want %#02x", i, a[i], b[i])
		}
		lost++
	}
	return lost, nil
}

// meta are the places of the bytes in a file that the guest did not write: of
// two files of disks that differ in their data only, the equal bytes in sectors
// that are not all zeros.
func meta(a, b []byte) []int {
	var at []int
	for i := 0; i < len(a) && i < len(b); i += 512 {
		p, q := a[i:min(i+512, len(a))], b[i:min(i+512, len(b))]
		if codec.Empty(p) {
			continue
		}
		same := 0
		for k := range p {
			if p[k] == q[k] {
				same++
			}
		}
		if same < len(p)/2 {
			continue
		}
		for k := range p {
			if p[k] == q[k] {
				at = append(at, i+k)
			}
		}
	}
	return at
}

// maxFlips bounds the damaged files tried; the bytes of a larger header are
// tried at equal distances.
const maxFlips = 6000 / slow / slow

// flips: a flipped bit in any header or table is refused, or gives a disk that
// keeps its contract. Nothing panics, and work stays bounded.
func (s *suite) flips(t *testing.T) {
	if s.headless {
		t.Skip("no header")
	}
	b := s.image(t, victim(1))
	at := meta(b, s.image(t, victim(2)))
	if len(at) == 0 {
		t.Fatal("no header found")
	}
	type flip struct {
		at  int
		bit byte
	}
	var flips []flip
	for i, p := range at {
		if i < 256 { // the first header, every bit
			for bit := range byte(8) {
				flips = append(flips, flip{p, bit})
			}
		} else {
			flips = append(flips, flip{p, byte(i % 8)})
		}
	}
	most := maxFlips
	if c, ok := s.opened(t, Bytes(b)).(codec.Coded); ok && c.Unit() > 0 {
		most /= Thin(4) // each that opens decodes blocks
	}
	step := 1 + len(flips)/most
	refused := 0
	for i := 0; i < len(flips); i += step {
		p, bit := flips[i].at, flips[i].bit
		b[p] ^= 1 << bit
		d, err := OpenHostile(s.open, b)
		b[p] ^= 1 << bit
		if err != nil {
			t.Errorf("bit %d of byte %#x flipped: %v", bit, p, err)
		}
		if d == nil {
			refused++
		}
	}
	t.Logf("%d of %d flips refused", refused, (len(flips)+step-1)/step)
}

// storeErrors: the error of a store comes out of every call, whole.
func (s *suite) storeErrors(t *testing.T) {
	ctx := context.Background()
	b := s.image(t, victim(1))
	count := Bounded(Bytes(b), 1<<40, 1<<40)
	if _, err := s.open.Open(ctx, count); err != nil {
		t.Fatal(err)
	}
	reads, _ := count.Used()
	for n := range min(reads, 60) {
		if _, err := s.open.Open(ctx, Faulty(Bytes(b), ErrBoom, n)); !errors.Is(err, ErrBoom) {
			t.Errorf("open with a store that fails after %d of %d reads: %v, want the store's error", n, reads, err)
		}
	}
	src := Faulty(Bytes(b), ErrBoom, 1<<40)
	d, err := s.open.Open(ctx, src)
	if err != nil {
		t.Fatal(err)
	}
	src.FailAfter(0)
	if n, err := d.ReadAt(ctx, make([]byte, 100), 0); !errors.Is(err, ErrBoom) || n != 0 {
		t.Errorf("read of data with a failing store: %d, %v, want 0 and the store's error", n, err)
	}
	for _, err := range d.Extents(ctx, 0, d.Size()) {
		if err != nil && !errors.Is(err, ErrBoom) {
			t.Errorf("extents with a failing store: %v", err)
		}
	}
	// The same the other way: a disk that fails under a laid out file.
	g := victim(1)
	f := s.layout(t, g)
	g.FailRead = ErrBoom
	if n, err := f.ReadAt(ctx, make([]byte, f.Size()), 0); !errors.Is(err, ErrBoom) || int64(n) == f.Size() {
		t.Errorf("read of the file over a failing disk: %d, %v", n, err)
	}
	g = victim(1)
	g.FailExtents = ErrBoom
	f, err = s.view.Layout(ctx, g, s.facts)
	if err == nil { // the map is not asked before the file's own is
		_, err = Extents(f)
	}
	if !errors.Is(err, ErrBoom) {
		t.Errorf("layout of a disk whose map fails: %v, want the store's error", err)
	}
}

// cancelled: a cancelled context ends every call that does I/O.
func (s *suite) cancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	b := s.image(t, victim(1))
	if _, err := s.open.Open(ctx, Bytes(b)); err != nil && !errors.Is(err, context.Canceled) || err == nil && !s.headless {
		t.Errorf("open: %v, want %v", err, context.Canceled)
	}
	d := s.opened(t, Bytes(b))
	if _, err := d.ReadAt(ctx, make([]byte, 100), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("read: %v, want %v", err, context.Canceled)
	}
	for _, err := range d.Extents(ctx, 0, d.Size()) {
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("extents: %v, want %v", err, context.Canceled)
		}
	}
	if _, err := s.view.Layout(ctx, victim(1), s.facts); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("layout: %v, want %v", err, context.Canceled)
	}
	f := s.layout(t, victim(1))
	if _, err := f.ReadAt(ctx, make([]byte, f.Size()), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("read of the file: %v, want %v", err, context.Canceled)
	}
}
