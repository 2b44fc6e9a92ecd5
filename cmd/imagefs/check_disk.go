package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"strings"

	"imagefs/codec"
	"imagefs/codec/all"
	"imagefs/fs/image"
	"imagefs/fs/stage"
	"imagefs/remote/catalog"
)

// damage is what is wrong with the stored image, rather than with the way to it.
type damage struct{ error }

func (d damage) Unwrap() error { return d.error }

func damagef(format string, a ...any) error { return damage{fmt.Errorf(format, a...)} }

// checkDisk checks one disk; the error is damage if it lies in the image.
func (s *session) checkDisk(ctx context.Context, d catalog.Disk, full bool) error {
	if d.Object.ETag == "" {
		return damagef("its object is missing")
	}
	src, done := s.source(d.Object)
	defer done()
	f, disk, err := openDisk(ctx, src, d)
	if err == nil && full {
		err = s.checkBytes(ctx, f, src, disk, d)
	}
	if errors.Is(err, stage.ErrSlow) {
		return err // it may be the way to the store
	}
	for _, kind := range []error{codec.ErrCorrupt, codec.ErrFormat, codec.ErrUnsupported, codec.ErrTooLarge, fs.ErrNotExist} {
		if errors.Is(err, kind) {
			return damage{err}
		}
	}
	return err
}

// openDisk opens a disk, which checks its tables, and compares what the entry
// says of it.
func openDisk(ctx context.Context, src codec.Source, d catalog.Disk) (codec.Format, codec.Disk, error) {
	f, err := stage.Detect(ctx, all.Formats, src)
	if err != nil {
		return nil, nil, err
	}
	if f.Name() != d.Format {
		return nil, nil, damagef("the content is %s, not %s", f.Name(), d.Format)
	}
	disk, err := f.Open(ctx, src)
	if err != nil {
		return nil, nil, err
	}
	// What was not imported rounds its size up.
	switch size, o := disk.Size(), d.Original; {
	case o != nil && (o.Size > size || size-o.Size >= sector):
		return nil, nil, damagef("it is a disk of %d bytes, its entry says that it was copied in as %d bytes of %s", size, o.Size, o.Format)
	case d.VirtualSize != 0 && o == nil && size != d.VirtualSize:
		return nil, nil, damagef("it is a disk of %d bytes, its entry says %d", size, d.VirtualSize)
	case d.VirtualSize != 0 && o != nil && o.Format == "raw" && d.VirtualSize != o.Size:
		return nil, nil, damagef("its entry says %d bytes and %d bytes of %s", d.VirtualSize, o.Size, o.Format)
	}
	return f, disk, nil
}

// sector is what the stored form of a raw disk rounds its size up to.
const sector = 512

// checkBytes reads the whole object and the whole disk.
func (s *session) checkBytes(ctx context.Context, f codec.Format, src codec.Source, disk codec.Disk, d catalog.Disk) error {
	if d.SHA256 != "" {
		sum, err := sumOf(ctx, &image.Object{Store: s.store, Version: d.Object}, d.Object.Size)
		if err != nil {
			return err
		}
		if !strings.EqualFold(sum, d.SHA256) {
			return damagef("the SHA-256 of the object %q is %s, its entry says %s", d.Object.Key, sum, d.SHA256)
		}
	}
	if err := s.checkIndex(ctx, d); err != nil {
		return err
	}
	o := d.Original
	if o == nil || o.SHA256 == "" || o.Format != "raw" {
		_, err := stage.Validate(ctx, f, src)
		return err
	}
	// Decodes everything once, as Validate does.
	sum, err := sumOf(ctx, disk, o.Size)
	if err == nil && !strings.EqualFold(sum, o.SHA256) {
		err = damagef("the SHA-256 of the disk is %s, its entry says that of the %s that was copied in is %s", sum, o.Format, o.SHA256)
	}
	return err
}

// checkIndex compares an index with what its entry says of it. A bad one costs
// views, never bytes.
func (s *session) checkIndex(ctx context.Context, d catalog.Disk) error {
	if d.Index == nil {
		return nil
	}
	const again = `make it anew with "imagefs index --again"`
	o, err := s.store.Stat(ctx, d.Index.Key)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return damagef("its index, the object %q, is missing: %s", d.Index.Key, again)
	case err != nil:
		return err
	case o.Size != d.Index.Size:
		return damagef("its index, the object %q, has %d bytes, its entry says %d: %s", o.Key, o.Size, d.Index.Size, again)
	}
	sum, err := sumOf(ctx, &image.Object{Store: s.store, Version: o}, o.Size)
	if err == nil && !strings.EqualFold(sum, d.Index.SHA256) {
		err = damagef("the SHA-256 of its index %q is %s, its entry says %s: %s", o.Key, sum, d.Index.SHA256, again)
	}
	return err
}

const (
	sumPiece = 4 << 20 // what one reader of sumOf reads at a time
	sumAhead = 8       // pieces, at most, that it holds
)

// sumOf is the SHA-256 of the first size bytes of r, in hex. It reads some
// pieces ahead.
func sumOf(ctx context.Context, r codec.ReaderAt, size int64) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type piece struct {
		data []byte
		err  error
	}
	ahead := min(runtime.GOMAXPROCS(0)+1, sumAhead)
	free := make(chan []byte, ahead)
	for range ahead {
		free <- nil
	}
	// Pieces in order; each comes when it is read.
	pieces := make(chan chan piece, ahead)
	go func() {
		defer close(pieces)
		for off := int64(0); off < size; off += sumPiece {
			var buf []byte
			select {
			case buf = <-free:
			case <-ctx.Done():
				return
			}
			if buf == nil {
				buf = make([]byte, min(sumPiece, size))
			}
			ch := make(chan piece, 1)
			pieces <- ch
			go func() {
				p := buf[:min(sumPiece, size-off)]
				n, err := r.ReadAt(ctx, p, off)
				if n == len(p) {
					err = nil
				} else if err == nil || err == io.EOF {
					err = io.ErrUnexpectedEOF
				}
				ch <- piece{buf[:len(p)], err}
			}()
		}
	}()
	h := sha256.New()
	var failed error
	for ch := range pieces {
		p := <-ch
		if failed = errors.Join(failed, p.err); failed != nil {
			cancel()
			continue // until the readers have ended
		}
		h.Write(p.data)
		free <- p.data[:cap(p.data)]
	}
	if failed == nil {
		failed = ctx.Err()
	}
	if failed != nil {
		return "", failed
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
