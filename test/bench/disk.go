package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// disk compares reads through a full disk cache, and one being filled, with
// reads of the store alone, which answers 20 ms later than it could.
func (b *bench) disk() error {
	slow, err := os.MkdirTemp("", "imagefs-bench") // on a disk, unlike b.dir
	if err != nil {
		return err
	}
	defer os.RemoveAll(slow)
	fast, empty := b.path("cache"), b.path("empty")
	defer os.RemoveAll(fast)
	defer os.RemoveAll(empty)
	return b.served(far, func(s *s3peer) error {
		for _, dir := range []string{fast, slow} {
			if err := b.command(b.imagefs, "warm", "-q", "--endpoint", s.endpoint, "--path-style", "path", "--cache-dir", dir, "s3://"+bucket, "guest"); err != nil {
				return err
			}
		}
		head(b.out, fmt.Sprintf("an image in S3, %v added to each request: with --cache-dir against without", far))
		var errs []error
		for _, k := range []struct {
			name string
			read reading
			dir  func() (string, error)
		}{
			{"sequential, all cached, in the page cache", sequential(direct, 0), func() (string, error) { return fast, nil }},
			{"sequential, all cached, on the disk alone", sequential(direct, 0), func() (string, error) { return slow, forget(slow) }},
			{"random 4 KiB, 1 reader, 500 reads, all cached", scattered(1, 500, 4096, 0), func() (string, error) { return slow, forget(slow) }},
			{"sequential, nothing cached yet", sequential(direct, 0), func() (string, error) { return empty, os.RemoveAll(empty) }},
		} {
			reads := func(t *turn, args ...string) error {
				mnt, err := t.mountS3(s, args...)
				if err != nil {
					return err
				}
				return t.time("", func() error { return k.read(t.ctx, disk(mnt, "guest", "vdi")) })
			}
			errs = append(errs, b.hold(contest{
				part: "disk", name: k.name,
				ours: func(t *turn) error {
					dir, err := k.dir()
					if err != nil {
						return err
					}
					return reads(t, "--cache-dir", dir)
				},
				entrants: []entrant{{rival: noCache, run: func(t *turn) error { return reads(t) }}},
			}))
		}
		return errors.Join(errs...)
	}, "guest.qcow2")
}

// forget makes the kernel drop what it holds of the files below dir.
func forget(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		const dontNeed = 4 // POSIX_FADV_DONTNEED
		err = f.Sync()     // dirty pages stay
		if _, _, errno := syscall.Syscall6(syscall.SYS_FADVISE64, f.Fd(), 0, 0, dontNeed, 0, 0); errno != 0 {
			err = errors.Join(err, errno)
		}
		return err
	})
}
