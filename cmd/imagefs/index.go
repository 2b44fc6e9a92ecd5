package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/pflag"

	"imagefs/codec/all"
	"imagefs/fs/stage"
	"imagefs/remote/catalog"
)

func indexCommand() *command {
	var f storeFlags
	var spool spoolFlags
	var again bool
	c := &command{
		name: "index", args: "STORE IMAGE", summary: "make the indexes that compressed views of an image need",
		help: `Decodes the compressed disks of an image once and keeps beside each object how
long its blocks are and what they sum up to. A mount needs that to show
diskN.zlib.qcow2, diskN.zstd.qcow2 and diskN.deflate.vmdk, and to read anywhere
in a ZVHD at once. Imports do it by themselves: this is for objects that were
put into the store in another way.

Example: imagefs index s3://images/prod centos7
`,
	}
	c.flags = func(set *pflag.FlagSet) {
		set.BoolVar(&again, "again", false, "make indexes anew that are there")
		spool.addFolder(set)
		f.add(set)
	}
	c.run = func(ctx context.Context, args []string) error {
		if err := c.need(args, 2); err != nil {
			return err
		}
		root, err := spool.root()
		if err != nil {
			return err
		}
		s, err := start(ctx, &f, args[0], "", defaultCache)
		if err != nil {
			return err
		}
		defer s.close()
		return s.index(ctx, args[1], root, again)
	}
	return c
}

// index makes the indexes of an image's disks.
func (s *session) index(ctx context.Context, name, root string, again bool) error {
	im, err := s.cat.Lookup(ctx, name)
	if err != nil {
		return err
	}
	if im.Err != nil {
		return fmt.Errorf("image %q: %w: %w", name, errBadImages, im.Err)
	}
	importer, err := stage.NewImporter(s.store, s.cat, all.Formats, all.Packages)
	if err != nil {
		return err
	}
	tmp := newScratch(root)
	defer tmp.remove()
	for _, d := range im.Disks {
		if d.Index != nil && !again {
			fmt.Fprintf(os.Stderr, "disk %d of %q has an index of %s\n", d.Number, name, iec(d.Index.Size))
			continue
		}
		size, err := s.indexDisk(ctx, importer, name, d, tmp)
		switch {
		case errors.Is(err, stage.ErrNoIndex):
			fmt.Fprintf(os.Stderr, "disk %d of %q needs no index: %v\n", d.Number, name, err)
		case err != nil:
			return fmt.Errorf("index disk %d of %q: %w", d.Number, name, err)
		default:
			fmt.Fprintf(os.Stderr, "disk %d of %q has an index of %s now\n", d.Number, name, iec(size))
		}
	}
	return nil
}

// indexDisk makes the index of one disk and returns its size.
func (s *session) indexDisk(ctx context.Context, im *stage.Importer, name string, d catalog.Disk, tmp *scratch) (int64, error) {
	dir, err := tmp.folder()
	if err != nil {
		return 0, err
	}
	src, done := s.source(d.Object)
	defer done()
	img, err := im.Index(ctx, name, d, src, dir)
	if err != nil {
		return 0, tmp.explain(err)
	}
	if now, ok := img.Disk(d.Number); ok && now.Index != nil {
		return now.Index.Size, nil
	}
	return 0, nil
}
