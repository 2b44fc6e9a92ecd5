package codectest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"imagefs/codec"
)

// checkExtents holds the extents of d to their contract: the cover is ordered,
// gapless and coalesced, what is zero reads as zeros, and a part of it is the
// part of the whole.
func checkExtents(t *testing.T, d codec.Disk, what string) {
	t.Helper()
	if err := extentsErr(d); err != nil {
		t.Errorf("extents of %s: %v", what, err)
	}
}

// Extents returns all extents of d, up to a million.
func Extents(d codec.Disk) ([]codec.Extent, error) { return extents(d, 0, d.Size()) }

func extents(d codec.Disk, off, n int64) ([]codec.Extent, error) {
	var es []codec.Extent
	var failed error
	for e, err := range d.Extents(context.Background(), off, n) {
		if failed != nil {
			return nil, fmt.Errorf("went on after the error %v", failed)
		}
		if failed = err; err != nil {
			continue
		}
		if es = append(es, e); len(es) > 1<<20 {
			return nil, errors.New("more than a million")
		}
	}
	return es, failed
}

func extentsErr(d codec.Disk) error {
	all, err := Extents(d)
	if err != nil {
		return err
	}
	if err := covers(all, 0, d.Size()); err != nil {
		return err
	}
	// Zeros are looked at whole where they are few, else at their ends and at
	// random.
	r := rand.New(rand.NewPCG(1, uint64(d.Size())))
	budget := 32 * mib / slow
	buf := make([]byte, 64*kib)
	for _, e := range all {
		if !e.Zero || budget <= 0 {
			continue
		}
		step := int64(len(buf))
		for off := e.Off; off < e.Off+e.Len; {
			p := buf[:min(step, e.Off+e.Len-off)]
			if n, err := d.ReadAt(context.Background(), p, off); n < len(p) {
				return fmt.Errorf("read at %#x: %w", off, err)
			}
			if !codec.Empty(p) {
				return fmt.Errorf("[%#x, %#x) is called zero, and there is data near %#x", e.Off, e.Off+e.Len, off)
			}
			budget -= int64(len(p))
			if left := e.Off + e.Len - off; left > 64*step {
				off += r.Int64N(left/16) + 1
			} else {
				off += int64(len(p))
			}
		}
	}
	for range 50 {
		off := r.Int64N(d.Size() + 1)
		n := r.Int64N(d.Size() - off + 2)
		if len(all) > 1 && r.IntN(2) == 0 { // near a border
			e := all[r.IntN(len(all))]
			off = max(0, min(e.Off+int64(r.IntN(3))-1, d.Size()))
			n = r.Int64N(2*e.Len + 2)
		}
		part, err := extents(d, off, n)
		if err != nil {
			return err
		}
		end := off + min(n, d.Size()-off)
		if err := covers(part, off, end); err != nil {
			return fmt.Errorf("of [%#x, +%#x): %w", off, n, err)
		}
		for _, e := range part {
			if !within(all, e) {
				return fmt.Errorf("of [%#x, +%#x): %+v is no part of an extent of the whole", off, n, e)
			}
		}
	}
	for _, off := range []int64{d.Size(), d.Size() + 1, codec.MaxSize} {
		if es, err := extents(d, off, 10); err != nil || len(es) != 0 {
			return fmt.Errorf("behind the end, at %#x: %v, %v, want none", off, es, err)
		}
	}
	return nil
}

func within(all []codec.Extent, e codec.Extent) bool {
	lo, hi := 0, len(all)
	for lo < hi {
		if m := (lo + hi) / 2; all[m].Off+all[m].Len > e.Off {
			hi = m
		} else {
			lo = m + 1
		}
	}
	return lo < len(all) && all[lo].Zero == e.Zero && e.Off >= all[lo].Off && e.Off+e.Len <= all[lo].Off+all[lo].Len
}

// covers tells whether es is an ordered, gapless, coalesced cover of [off, end).
func covers(es []codec.Extent, off, end int64) error {
	for i, e := range es {
		if e.Off != off || e.Len <= 0 || e.Len > end-off {
			return fmt.Errorf("extent %d is %+v, want one that begins at %#x and ends by %#x", i, e, off, end)
		}
		if i > 0 && e.Zero == es[i-1].Zero {
			return fmt.Errorf("extents %d and %d are one: %+v, %+v", i-1, i, es[i-1], e)
		}
		off += e.Len
	}
	if off < end {
		return fmt.Errorf("the cover ends at %#x, want %#x", off, end)
	}
	return nil
}

// sameDisk compares got with want, which zeros may follow: whole where they are
// small, else all that holds data, its surroundings, and samples of the rest.
func sameDisk(t *testing.T, got, want codec.Disk) {
	t.Helper()
	if err := Same(got, want); err != nil {
		t.Error(err)
	}
}

// Same compares the bytes of two disks, of which got may be longer by zeros:
// whole below 16 MiB, else where want holds data, around it, and at random.
func Same(got, want codec.Disk) error {
	if got.Size() < want.Size() {
		return fmt.Errorf("disk of %d bytes, want %d at least", got.Size(), want.Size())
	}
	const window = 1 << 20
	a, b := make([]byte, window), make([]byte, window)
	at := func(off, n int64) error {
		for n > 0 {
			p, q := a[:min(n, window)], b[:min(n, window)]
			if m, err := got.ReadAt(context.Background(), p, off); m < len(p) {
				return fmt.Errorf("read of %d bytes at %#x: %d, %w", len(p), off, m, err)
			}
			clear(q)
			if off < want.Size() {
				if m, err := want.ReadAt(context.Background(), q, off); err != nil && err != io.EOF || err == nil && m < len(q) {
					return fmt.Errorf("read of the original at %#x: %d, %w", off, m, err)
				}
			}
			if i := differ(p, q); i >= 0 {
				return fmt.Errorf("byte %#x is %#02x, want %#02x (read of %d bytes at %#x)", off+int64(i), p[i], q[i], len(p), off)
			}
			off, n = off+int64(len(p)), n-int64(len(p))
		}
		return nil
	}
	if got.Size() <= 16*mib {
		return at(0, got.Size())
	}
	around := func(off, n int64) error {
		lo, hi := max(off, 0), off+min(n, got.Size()-off)
		return at(lo, hi-lo)
	}
	budget := 64 * mib / slow
	for e, err := range want.Extents(context.Background(), 0, want.Size()) {
		if err != nil {
			return err
		}
		if e.Zero || budget < 0 {
			continue
		}
		if err := around(e.Off-5000, e.Len+10000); err != nil {
			return err
		}
		budget -= e.Len
	}
	r := rand.New(rand.NewPCG(2, uint64(got.Size())))
	for range 200 / slow {
		if err := around(r.Int64N(got.Size()), 8*kib); err != nil {
			return err
		}
	}
	if err := around(got.Size()-64*kib, 64*kib); err != nil {
		return err
	}
	return around(0, 64*kib)
}

func differ(p, q []byte) int {
	if bytes.Equal(p, q) {
		return -1
	}
	for i := range p {
		if p[i] != q[i] {
			return i
		}
	}
	return -1
}

// CheckRandom compares reads at random places with one read of the whole, and
// reads over the end.
func CheckRandom(t *testing.T, d codec.Disk) {
	t.Helper()
	ctx := context.Background()
	whole, err := ReadAll(d)
	if err != nil {
		t.Error(err)
		return
	}
	r := rand.New(rand.NewPCG(3, uint64(d.Size())))
	buf := make([]byte, 300*kib)
	stale := bytes.Repeat([]byte{0xa5}, len(buf))
	for range readsOf(d, 300) {
		off := r.Int64N(d.Size() + 1)
		n := r.Int64N(int64(len(buf)))
		if r.IntN(2) == 0 {
			n = r.Int64N(600)
		}
		p := buf[:n]
		copy(p, stale) // what a read leaves out shows
		m, err := d.ReadAt(ctx, p, off)
		want := whole[off:min(off+n, d.Size())]
		if m != len(want) || m == len(p) && err != nil && err != io.EOF || m < len(p) && err != io.EOF {
			t.Errorf("read of %d bytes at %#x of %d: %d, %v", n, off, d.Size(), m, err)
			return
		}
		if i := differ(p[:m], want); i >= 0 {
			t.Errorf("read of %d bytes at %#x: byte %#x is %#02x, want %#02x", n, off, off+int64(i), p[i], want[i])
			return
		}
		b, err := codec.Slice(ctx, d, off, int(n))
		if err != nil || b != nil && (int64(len(b)) != n || cap(b) != len(b) || differ(b, want) >= 0) {
			t.Errorf("slice of %d bytes at %#x: %d bytes, %v, or others than those read", n, off, len(b), err)
			return
		}
	}
	if n, err := d.ReadAt(ctx, buf, -1); n != 0 || err == nil || err == io.EOF {
		t.Errorf("read at -1: %d, %v, want an error", n, err)
	}
}

// ReadAll reads the whole of d, which must be small.
func ReadAll(d codec.Source) ([]byte, error) {
	b := make([]byte, d.Size())
	if n, err := d.ReadAt(context.Background(), b, 0); n < len(b) {
		return nil, fmt.Errorf("read all %d bytes: %d, %w", len(b), n, err)
	}
	return b, nil
}
