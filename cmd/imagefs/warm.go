package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/spf13/pflag"

	"imagefs/cache/disk"
	"imagefs/remote"
	"imagefs/remote/catalog"
)

const (
	// warmSpan is the most that one request of a warming asks for, in bytes.
	warmSpan = 8 * disk.Chunk
	// warmParallel is how many requests are in flight.
	warmParallel = 8
)

// byteRange is a flag: where in a stored file, and how much. The zero value is
// all of it.
type byteRange struct{ off, n int64 }

func (r *byteRange) Type() string { return "range" }

func (r *byteRange) String() string {
	if *r == (byteRange{}) {
		return ""
	}
	off, n := size(r.off), size(r.n)
	return off.String() + "-" + n.String()
}

func (r *byteRange) Set(v string) error {
	off, n, ok := strings.Cut(v, "-")
	var a, b size
	if !ok || a.Set(off) != nil || b.Set(n) != nil || b == 0 {
		return fmt.Errorf("%q is not a range such as 1G-512M, an offset and a length", v)
	}
	*r = byteRange{int64(a), int64(b)}
	return nil
}

// of is the part of a file in the range, in whole units of the disk cache.
func (r byteRange) of(total int64) (from, to int64) {
	const unit = disk.Unit
	if r == (byteRange{}) {
		return 0, total
	}
	from = min(r.off, total) / unit * unit
	end := r.off + min(r.n, total) // cannot overflow: sizes are below 2^62
	return from, min((end+unit-1)/unit*unit, total)
}

// warmFlags are what a warming can be told.
type warmFlags struct {
	store       storeFlags
	cache       diskFlags
	disk        int // below 0: all
	part        byteRange
	quiet, json bool
}

func warmCommand() *command {
	f := &warmFlags{}
	c := &command{
		name: "warm", args: "STORE IMAGE", summary: "fetch an image into the disk cache of a mount",
		help: `Fetches the stored files of an image, as they are, into the folder that a
later mount names with --cache-dir: that mount then reads them from there.
What is there already is not fetched again. A folder serves one program at a
time, so this is for before a mount, not beside it. Say --disk-cache-size as
the mount will: what is beyond that makes way.

Example: imagefs warm --cache-dir /var/cache/imagefs s3://images/prod centos7
`,
	}
	c.flags = func(set *pflag.FlagSet) {
		f.cache.add(set)
		set.IntVar(&f.disk, "disk", -1, "number of the only disk to fetch (default all)")
		set.Var(&f.part, "range", "part of the disk's stored file to fetch, as OFFSET-LENGTH in bytes, such as 1G-512M (default all)")
		set.BoolVarP(&f.quiet, "quiet", "q", false, "no progress, only errors")
		set.BoolVar(&f.json, "json", false, "print JSON, one event per line")
		f.store.add(set)
	}
	c.run = func(ctx context.Context, args []string) error {
		if err := c.need(args, 2); err != nil {
			return err
		}
		if f.cache.dir == "" {
			return usagef("warm needs --cache-dir: the folder of a mount's disk cache")
		}
		return f.run(ctx, args[0], args[1])
	}
	return c
}

func (f *warmFlags) run(ctx context.Context, storeName, name string) (err error) {
	report := newReporter(f.quiet, f.json)
	defer func() { report.failed(event{Image: name}, err) }()
	defer report.close()
	s, err := start(ctx, &f.store, storeName, "", defaultCache)
	if err != nil {
		return err
	}
	defer s.close()
	if remote.IsLocal(s.store) {
		return usagef("store %q is a folder: a mount of it reads its files where they are, and keeps no blocks", storeName)
	}
	disks, err := f.choose(ctx, s, name)
	if err != nil {
		return err
	}
	err = f.cache.open(s, func(err error) {
		report.close() // the line that moves
		fmt.Fprintf(os.Stderr, "imagefs: %v\n", err)
	})
	if err != nil {
		return err
	}
	for _, d := range disks {
		if err := f.warm(ctx, s, name, d, report); err != nil {
			return fmt.Errorf("warm disk %d of %q: %w", d.Number, name, err)
		}
	}
	return nil
}

// choose finds the disks to fetch, which must fit.
func (f *warmFlags) choose(ctx context.Context, s *session, name string) ([]catalog.Disk, error) {
	im, err := s.cat.Lookup(ctx, name)
	if err != nil {
		return nil, err
	}
	if im.Err != nil {
		return nil, fmt.Errorf("image %q: %w: %w", name, errBadImages, im.Err)
	}
	disks := im.Disks
	if f.disk >= 0 {
		d, ok := im.Disk(f.disk)
		if !ok {
			return nil, fmt.Errorf("image %q has no disk %d: %w", name, f.disk, fs.ErrNotExist)
		}
		disks = []catalog.Disk{d}
	}
	if f.part != (byteRange{}) && len(disks) != 1 {
		return nil, usagef("--range is of one disk, and image %q has %d: say --disk too", name, len(disks))
	}
	var total int64
	for _, d := range disks {
		from, to := f.part.of(d.Object.Size)
		if f.part.off >= d.Object.Size && d.Object.Size > 0 {
			return nil, usagef("--range %s lies beyond %q, which has %d bytes", &f.part, d.Object.Key, d.Object.Size)
		}
		total += disk.Footprint(from, to)
	}
	if total > int64(f.cache.size) {
		return nil, fmt.Errorf("image %q takes %d bytes of the cache, which may have %d: say a larger --disk-cache-size, or --disk and --range", name, total, f.cache.size)
	}
	return disks, nil
}

// warm fetches one disk.
func (f *warmFlags) warm(ctx context.Context, s *session, name string, d catalog.Disk, report *reporter) error {
	from, to := f.part.of(d.Object.Size)
	e := event{Source: d.Object.Key, Image: name, Disk: &d.Number, Bytes: to - from}
	report.event("fetching", e)
	w := &warming{store: s.store, version: d.Object, kept: s.object(d.Object), to: to}
	w.next.Store(from)
	progress := report.step("fetching", e)
	w.progress = func(done int64) { progress(done, to-from) }
	if err := w.run(ctx); err != nil {
		return err
	}
	e.Got = w.fetched.Load()
	report.event("warmed", e)
	return nil
}

// warming is one stored file on its way into the disk cache.
type warming struct {
	store    remote.Store
	version  remote.Object
	kept     *disk.Object
	to       int64
	progress func(done int64)

	next, done, fetched atomic.Int64 // offset of the next span; bytes
}

// run fetches spans, several at a time, until the end or the first error.
func (w *warming) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for range warmParallel {
		wg.Go(func() {
			buf := make([]byte, warmSpan)
			for ctx.Err() == nil {
				off := w.next.Add(warmSpan) - warmSpan
				if off >= w.to {
					return
				}
				p := buf[:min(warmSpan, w.to-off)]
				if err := w.span(ctx, p, off); err != nil {
					cancel(err) // buf is not used again: it may still be queued
					return
				}
				w.progress(w.done.Add(int64(len(p))))
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// span gets the units of p that are not kept by one request, from the first of them
// to the last.
func (w *warming) span(ctx context.Context, p []byte, off int64) error {
	from, to := len(p), 0
	for n := 0; n < len(p); {
		m, kept := w.kept.Load(p[n:], off+int64(n))
		if !kept {
			from, to = min(from, n), n+m
		}
		n += m
	}
	if from >= to {
		return nil
	}
	if err := w.store.ReadRange(ctx, w.version, p[from:to], off+int64(from)); err != nil {
		return err
	}
	if err := w.kept.Store(ctx, p[from:to], off+int64(from)); err != nil {
		if errors.Is(err, disk.ErrNoRoom) {
			return fmt.Errorf("%w: what was fetched until now stays", err)
		}
		return err
	}
	w.fetched.Add(int64(to - from))
	return nil
}
