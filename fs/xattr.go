package fs

import (
	"context"
	"strconv"
	"syscall"

	"imagefs/fs/image"
	"imagefs/remote/catalog"
)

// xattr is one extended attribute.
type xattr struct{ name, value string }

// xattrs are what a file tells of itself beyond stat.
func xattrs(f *image.File) []xattr {
	d := f.Of
	return []xattr{
		{"user.imagefs.format", f.View},
		{"user.imagefs.virtual_size", strconv.FormatInt(d.Size, 10)},
		{"user.imagefs.image_id", catalog.FormatID(d.Image.ID)},
		{"user.imagefs.source", d.Object.Key},
		{"user.imagefs.source_format", d.Format},
		{"user.imagefs.etag", d.Object.ETag},
	}
}

// Getxattr answers from memory, and ENODATA for every other name: programs ask
// for the attributes of security and access lists with each open.
func (n *file) Getxattr(_ context.Context, name string, dest []byte) (uint32, syscall.Errno) {
	for _, x := range n.x {
		if x.name == name {
			return fill(dest, x.value)
		}
	}
	return 0, syscall.ENODATA
}

// Listxattr lists the names, each ended by a NUL.
func (n *file) Listxattr(_ context.Context, dest []byte) (uint32, syscall.Errno) {
	var names string
	for _, x := range n.x {
		names += x.name + "\x00"
	}
	return fill(dest, names)
}

// fill copies a value where it fits; asked with no room, it tells the length.
func fill(dest []byte, value string) (uint32, syscall.Errno) {
	if len(dest) < len(value) {
		return uint32(len(value)), syscall.ERANGE
	}
	return uint32(copy(dest, value)), 0
}

// Getxattr of anything but a disk's file is ENODATA.
func (readOnly) Getxattr(context.Context, string, []byte) (uint32, syscall.Errno) {
	return 0, syscall.ENODATA
}

// Listxattr of anything but a disk's file is empty.
func (readOnly) Listxattr(context.Context, []byte) (uint32, syscall.Errno) { return 0, 0 }
