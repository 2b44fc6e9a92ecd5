package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"

	"imagefs/cache"
	"imagefs/cache/disk"
	"imagefs/remote"
)

const (
	// defaultDiskCache is the size of the disk cache where no flag says else.
	defaultDiskCache = 10 << 30
	// diskQueue is the memory for blocks on their way to the disk cache.
	diskQueue = 64 << 20
	// diskWait is how long a mount that ended may go on writing into its folder
	// before the next one gives up.
	diskWait = 5 * time.Second
)

// diskFlags say where blocks of a remote store are kept on a local disk.
type diskFlags struct {
	dir  string
	size size
}

func (f *diskFlags) add(set *pflag.FlagSet) {
	f.size = defaultDiskCache
	set.StringVar(&f.dir, "cache-dir", "", "folder that keeps blocks of an S3 store on a local disk, one for each mount (default none)")
	set.Var(&f.size, "disk-cache-size", "bytes that --cache-dir may take, such as 100G; 5 % or 1 GiB of its file system stay free")
}

// check refuses what cannot be meant.
func (f *diskFlags) check() error {
	if f.dir == "" && f.size != defaultDiskCache {
		return usagef("--disk-cache-size needs --cache-dir: the folder that the blocks lie in")
	}
	return nil
}

// open opens the disk cache of a session, which closes it. report is told errors
// of the disk.
func (f *diskFlags) open(s *session, report func(error)) error {
	dir, err := filepath.Abs(f.dir)
	if err != nil {
		return err
	}
	s.disk, err = disk.Open(disk.Config{Dir: dir, Size: int64(f.size), Queue: diskQueue, Wait: diskWait, Report: report})
	switch {
	case errors.Is(err, disk.ErrLocked):
		return fmt.Errorf(`%w: a mount or "imagefs warm" holds it: end that one first, or say another folder with --cache-dir`, err)
	case errors.Is(err, disk.ErrUnsafe):
		return fmt.Errorf("%w: say a folder with --cache-dir that is yours alone", err)
	case err != nil:
		return fmt.Errorf("%w (choose another folder with --cache-dir, or leave it out)", err)
	}
	f.dir = dir
	return nil
}

// object is a version in the disk cache.
func (s *session) object(o remote.Object) *disk.Object {
	return s.disk.Object(disk.Identity{Store: s.store.id, Key: o.Key, ETag: o.ETag, Size: o.Size})
}

// tier is where a version's blocks are kept below memory, or nil.
func (s *session) tier(o remote.Object) cache.Tier {
	if s.disk == nil {
		return nil
	}
	return s.object(o)
}
