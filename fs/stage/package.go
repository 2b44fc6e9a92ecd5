package stage

import (
	"context"
	"fmt"

	"imagefs/codec"
)

// checkPackage checks a file that is a package: what holds the disks together,
// and then every disk in it, each where it lies. Nothing is unpacked.
func (c *Checked) checkPackage(ctx context.Context) error {
	src := &local{f: c.File, size: c.Size}
	kind, machine, parts, err := codec.OpenPackage(ctx, c.im.packs, src)
	if err != nil {
		return err
	}
	if kind.Name() != c.Package {
		return fmt.Errorf("%w: the name says %s, but the content is %s: name it .%s", codec.ErrFormat, c.Package, kind.Name(), kind.Name())
	}
	if len(parts) == 0 {
		return codec.Unsupportedf("the %s holds no disk", c.Package)
	}
	if d, ok := kind.(codec.Digested); ok {
		if err := d.Verify(ctx, src); err != nil {
			return err
		}
	}
	for _, in := range parts {
		p := &member{number: in.Number, src: &local{f: c.File, off: in.Off, size: in.Len}}
		p.format, err = Detect(ctx, c.im.formats, p.src)
		if err == nil && p.format.Name() == "raw" {
			err = codec.Unsupportedf("its content has no signature of a disk's format")
		}
		if err == nil {
			p.disk, p.index, err = validate(ctx, p.format, p.src)
		}
		if err != nil {
			return fmt.Errorf("disk %d, member %q: %w", in.Number, in.Name, err)
		}
		if in.Size != 0 && in.Size != p.disk.Size() {
			c.notes = append(c.notes, fmt.Sprintf("disk %d, member %q, is a disk of %d bytes, the package says %d: the disk counts", in.Number, in.Name, p.disk.Size(), in.Size))
		}
		c.disks = append(c.disks, p)
		c.total += in.Len
	}
	c.props = machine.Props()
	return nil
}
