package vhd

import (
	"context"
	"fmt"

	"imagefs/codec"
)

// Fixed lays a disk out as a fixed VHD, as Azure takes it: the guest's bytes,
// rounded up to whole MiB, and then the footer. The file is as long as the
// disk; what the disk leaves out are holes. [Format] opens it.
var Fixed codec.View = fixedView{}

const (
	// fixedUnit is what Azure wants the size to be a multiple of.
	fixedUnit = 1 << 20
	// maxFixed is the largest disk that Azure takes, 32 TiB. Other readers
	// end at 2040 GiB.
	maxFixed = 32 << 40
)

type fixedView struct{}

func (fixedView) Name() string { return "fixed.vhd" }

func (v fixedView) Layout(_ context.Context, d codec.Disk, f codec.Facts) (*codec.File, error) {
	if d.Size() > maxFixed {
		return nil, fmt.Errorf("%w: %s holds at most %d bytes, the disk has %d", codec.ErrTooLarge, v.Name(), int64(maxFixed), d.Size())
	}
	size := codec.Up(d.Size(), fixedUnit)
	file := new(codec.File)
	file.Guest(d, 0, size)
	file.Literal(footer{
		version:    version10,
		dataOffset: allOnes,
		time:       codec.VHDTime(f.Created),
		size:       uint64(size),
		kind:       typeFixed,
		uuid:       f.UUID(v.Name(), "footer"),
	}.marshal())
	return file, nil
}
