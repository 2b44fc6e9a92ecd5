package main

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"unsafe"
)

const direct = syscall.O_DIRECT

// aligned returns n bytes that O_DIRECT accepts.
func aligned(n int) []byte {
	const page = 4096
	b := make([]byte, n+page)
	off := int(-uintptr(unsafe.Pointer(&b[0])) & (page - 1))
	return b[off : off+n : off+n]
}

// A reading reads a file in some way.
type reading func(ctx context.Context, path string) error

// sequential reads the first n bytes in pieces of 1 MiB, or all if n is 0.
func sequential(flags int, n int64) reading {
	return func(ctx context.Context, path string) error {
		f, err := os.OpenFile(path, os.O_RDONLY|flags, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		buf := aligned(1 << 20)
		for got := int64(0); (n == 0 || got < n) && ctx.Err() == nil; {
			k, err := f.Read(buf)
			got += int64(k)
			if err == io.EOF {
				if n > 0 && got < n {
					return io.ErrUnexpectedEOF
				}
				return nil
			} else if err != nil {
				return err
			}
		}
		return ctx.Err()
	}
}

// scattered reads pieces of some bytes at random places within the first n
// bytes, all of the file if n is 0, past the kernel's cache. The places are the
// same each time.
func scattered(readers, reads, piece int, n int64) reading {
	return func(ctx context.Context, path string) error {
		f, err := os.OpenFile(path, os.O_RDONLY|direct, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		if n == 0 || n > info.Size() {
			n = info.Size()
		}
		errs := make([]error, readers)
		var wg sync.WaitGroup
		for i := range readers {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(1, uint64(i)))
				buf := aligned(piece)
				for range reads {
					if _, err := f.ReadAt(buf, rng.Int64N(n/int64(piece))*int64(piece)); err != nil || ctx.Err() != nil {
						errs[i] = errors.Join(err, ctx.Err())
						return
					}
				}
			})
		}
		wg.Wait()
		return errors.Join(errs...)
	}
}

// oneMiB reads a MiB that is not at the start, where it may be made of nothing.
func oneMiB(_ context.Context, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.ReadFull(io.NewSectionReader(f, 2<<20, 1<<20), make([]byte, 1<<20))
	return err
}
