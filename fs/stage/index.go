package stage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"imagefs/codec"
	"imagefs/remote/catalog"
)

// indexFormat is the extension of an index's object.
const indexFormat = "index"

// ErrNoIndex says that there is nothing about a disk that an index could keep.
var ErrNoIndex = errors.New("its blocks are not encoded")

// putIndex stores what was found out about a disk, beside its object.
func (im *Importer) putIndex(ctx context.Context, c *Checked, p *member) (*catalog.Index, error) {
	f, err := os.CreateTemp(c.Scratch, "object-*."+indexFormat)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	defer os.Remove(f.Name())
	size, err := p.index.WriteTo(f)
	if err != nil {
		return nil, fmt.Errorf("write the index in %q: %w", filepath.Dir(f.Name()), err)
	}
	// A small object after the large one: nobody waits to see it go.
	quiet := *c
	job := *c.Job
	job.Progress, job.sent = nil, nil
	quiet.Job = &job
	o, sum, err := quiet.upload(ctx, p.number, indexFormat, &local{f: f, size: size})
	if err != nil {
		return nil, err
	}
	return &catalog.Index{Key: o.Key, Size: o.Size, SHA256: sum}, nil
}

// Index makes the index of a disk that is stored already, whose bytes src
// reads, and names it in the catalog. [ErrNoIndex] where there is nothing to
// keep. scratch is a folder for the index on its way.
func (im *Importer) Index(ctx context.Context, image string, d catalog.Disk, src codec.Source, scratch string) (*catalog.Image, error) {
	f, err := detect(ctx, im.formats, src, d.Format)
	if err != nil {
		return nil, err
	}
	_, x, err := validate(ctx, f, src)
	if err != nil {
		return nil, err
	}
	if x == nil {
		return nil, ErrNoIndex
	}
	defer x.Close()
	c := &Checked{im: im, Job: &Job{Target: Target{Image: image, Number: d.Number}, Scratch: scratch}}
	entry, err := im.putIndex(ctx, c, &member{number: d.Number, index: x})
	if err != nil {
		return nil, err
	}
	img, err := im.cat.PutIndex(ctx, image, d.Number, d.Object.Key, *entry)
	if errors.Is(err, catalog.ErrConflict) {
		_ = im.store.Delete(context.WithoutCancel(ctx), entry.Key) // nothing names it, and nothing will
	}
	return img, err
}
