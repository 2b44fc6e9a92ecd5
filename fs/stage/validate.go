package stage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"runtime"
	"sync"
	"time"

	"imagefs/codec"
)

// ErrSlow says that a check took too long: the image is made to do that, or its
// bytes come too slowly.
var ErrSlow = errors.New("too slow")

// Decoding is given a second for every megabyte of the file and a minute
// besides: far more than any honest image takes.
const (
	decodeBase = time.Minute
	decodeRate = 1 << 20 // bytes of the file per second
)

// decodePiece is how much of a disk one worker compares at a time.
const decodePiece = 2 << 20

// Detect says which of formats the content of src is, by content alone. An
// error says what it is when it is none of them, or two of them at once.
func Detect(ctx context.Context, formats []codec.Format, src codec.Source) (codec.Format, error) {
	head, tail, err := codec.Ends(ctx, src)
	if err != nil {
		return nil, err
	}
	return codec.Detect(formats, head, tail)
}

// detect holds content and promised format together. Without a promise the
// content has to have a signature.
func detect(ctx context.Context, formats []codec.Format, src codec.Source, promised string) (codec.Format, error) {
	found, err := Detect(ctx, formats, src)
	if err != nil {
		return nil, err
	}
	switch {
	case found.Name() == promised || promised == "" && found.Name() != "raw":
		return found, nil
	case promised == "":
		return nil, fmt.Errorf("%w: neither the name nor the content says what it is: if it is a raw disk, say --disk-format raw",
			codec.ErrFormat)
	case found.Name() == "raw":
		return nil, fmt.Errorf("%w: the name says %s, but the content has no signature of it: is the file cut short, or a raw disk?",
			codec.ErrFormat, promised)
	case promised == "raw":
		return nil, fmt.Errorf("%w: the name says raw, but the content is %s: name it .%s, or declare a raw disk with imagefs import --disk-format raw",
			codec.ErrFormat, found.Name(), found.Name())
	}
	return nil, fmt.Errorf("%w: the name says %s, but the content is %s: name it .%s", codec.ErrFormat, promised, found.Name(), found.Name())
}

// verifier is a disk that can check more than opening does: what would cost a
// read for every block, and what other readers would take for another disk. An
// image in use is opened often, and imported once.
type verifier interface {
	// Verify returns nil, an error of the kinds that opening returns, or the
	// source's own.
	Verify(ctx context.Context) error
}

// Validate opens src as f and checks all that a later read relies on: the
// tables at opening, what only some readers would mind, and whatever is encoded
// by decoding it once. It holds a few megabytes, and 8 bytes for each encoded
// block, and ends within a time that follows from the file's size.
func Validate(ctx context.Context, f codec.Format, src codec.Source) (codec.Disk, error) {
	d, x, err := validate(ctx, f, src)
	x.Close()
	return d, err
}

// validate is Validate, and keeps what decoding found out, which is to be
// closed; nil if there is nothing.
func validate(ctx context.Context, f codec.Format, src codec.Source) (d codec.Disk, x *codec.Index, err error) {
	limit := decodeBase + time.Duration(src.Size()/decodeRate)*time.Second
	ctx, cancel := context.WithTimeoutCause(ctx, limit,
		fmt.Errorf("%w: %w", ErrSlow, codec.Unsupportedf("checking the image takes more than %v for its %d bytes", limit, src.Size())))
	defer cancel()
	d, err = f.Open(ctx, src)
	if err == nil {
		if d.Size() < 0 || d.Size() > codec.MaxSize {
			return nil, nil, codec.Corruptf("virtual size %d", d.Size())
		}
		if d.Size() == 0 && f.Name() != "raw" {
			// Nobody keeps such a disk; a damaged size is often this one,
			// and readers disagree on it.
			return nil, nil, codec.Unsupportedf("virtual size 0")
		}
		if v, ok := d.(verifier); ok {
			err = v.Verify(ctx)
		}
		if err == nil {
			// What is stored plain lies inside the file, which opening
			// has checked.
			x, err = codec.BuildIndex(ctx, d, runtime.GOMAXPROCS(0), nil)
		}
	}
	if err != nil && context.Cause(ctx) != nil && errors.Is(err, ctx.Err()) {
		err = context.Cause(ctx)
	}
	return d, x, err
}

// unexpected is what a short read without an error of its own is.
func unexpected(err error) error {
	if err == nil || err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// mapped is what eachPiece walks along.
type mapped interface {
	Size() int64
	Extents(ctx context.Context, off, n int64) iter.Seq2[codec.Extent, error]
}

// eachPiece calls fn for the whole of d, on every processor at once: for data in
// pieces of at most decodePiece bytes, cut at their multiples so that no block
// is in two, and for holes whole. buf has room for two pieces. The first error
// ends it.
func eachPiece(ctx context.Context, d mapped, fn func(ctx context.Context, buf []byte, e codec.Extent) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan codec.Extent)
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			buf := make([]byte, 2*decodePiece)
			for e := range work {
				if err := fn(ctx, buf, e); err != nil {
					cancel(err)
				}
			}
		})
	}
	err := func() error {
		defer close(work)
		for e, err := range d.Extents(ctx, 0, d.Size()) {
			if err != nil {
				return err
			}
			for end := e.Off + e.Len; e.Off < end; e.Off += e.Len {
				if e.Len = end - e.Off; !e.Zero {
					e.Len = min(e.Len, decodePiece-e.Off%decodePiece)
				}
				select {
				case work <- e:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
		}
		return nil
	}()
	wg.Wait()
	// What a worker found ends the walk as well, which then says only that.
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}
