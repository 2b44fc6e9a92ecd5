package codectest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"testing"

	"imagefs/codec"
)

// ErrBoom is an error of a failing store.
var ErrBoom = errors.New("the store is on fire")

// ErrBudget is what a bounded source gives once its budget is spent.
var ErrBudget = errors.New("read budget spent")

// Bytes is b as a source. It stops at a cancelled context.
func Bytes(b []byte) codec.Source { return bytesSource(b) }

type bytesSource []byte

func (s bytesSource) Size() int64 { return int64(len(s)) }

func (s bytesSource) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, fmt.Errorf("read at %d", off)
	}
	if off >= int64(len(s)) {
		return 0, io.EOF
	}
	n := copy(p, s[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// File is the file at path as a source, closed when the test ends.
func File(t testing.TB, path string) codec.Source {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return fileSource{f, fi.Size()}
}

type fileSource struct {
	f    *os.File
	size int64
}

func (s fileSource) Size() int64 { return s.size }

func (s fileSource) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	return s.f.ReadAt(p, off)
}

// Fault is a source that fails: see [Faulty] and [FaultyAt].
type Fault struct {
	codec.Source
	err      error
	left     atomic.Int64 // reads still served
	off, end int64        // a read touching it fails; empty for none
}

// Faulty serves after reads of src and then fails every one with err.
func Faulty(src codec.Source, err error, after int64) *Fault {
	f := &Fault{Source: src, err: err}
	f.left.Store(after)
	return f
}

// FaultyAt fails every read that touches [off, off+n) of src with err.
func FaultyAt(src codec.Source, err error, off, n int64) *Fault {
	f := &Fault{Source: src, err: err, off: off, end: off + n}
	f.left.Store(1 << 62)
	return f
}

// FailAfter fails all but the next n reads from now on.
func (f *Fault) FailAfter(n int64) { f.left.Store(n) }

// ReadAt implements [codec.Source].
func (f *Fault) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if f.left.Add(-1) < 0 || off < f.end && off+int64(len(p)) > f.off {
		return 0, f.err
	}
	return f.Source.ReadAt(ctx, p, off)
}

// Bound is a source with a budget: see [Bounded].
type Bound struct {
	codec.Source
	maxReads, maxBytes int64
	reads, bytes       atomic.Int64
}

// Bounded fails with [ErrBudget] what exceeds so many reads or bytes of src.
func Bounded(src codec.Source, maxReads, maxBytes int64) *Bound {
	return &Bound{Source: src, maxReads: maxReads, maxBytes: maxBytes}
}

// Used is what was asked for so far.
func (b *Bound) Used() (reads, bytes int64) { return b.reads.Load(), b.bytes.Load() }

// ReadAt implements [codec.Source].
func (b *Bound) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if b.reads.Add(1) > b.maxReads || b.bytes.Add(int64(len(p))) > b.maxBytes {
		return 0, ErrBudget
	}
	return b.Source.ReadAt(ctx, p, off)
}

// Truncated is the first n bytes of src.
func Truncated(src codec.Source, n int64) codec.Source {
	return truncated{src, min(n, src.Size())}
}

type truncated struct {
	codec.Source
	size int64
}

func (s truncated) Size() int64 { return s.size }

func (s truncated) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return codec.ReadParts(ctx, p, off, s.size, s.Source.ReadAt)
}

// Flip is src with one bit inverted, counted from the lowest of byte 0 on.
func Flip(src codec.Source, bit int64) codec.Source { return flipped{src, bit} }

type flipped struct {
	codec.Source
	bit int64
}

func (s flipped) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := s.Source.ReadAt(ctx, p, off)
	if at := s.bit/8 - off; at >= 0 && at < int64(n) {
		p[at] ^= 1 << (s.bit % 8)
	}
	return n, err
}
