// Package codec turns disk images into disks and disks into image files.
//
// Five nouns carry it. A [Source] is stored bytes with a size. A [Disk] is
// what a guest sees: bytes, a size, and a map of which ranges hold data. A
// [Format] works in both directions: Open reads a Source as a Disk, Layout
// lays a Disk out as a [File]. A File is a virtual file: an ordered cover of
// its bytes by segments. A File has the methods of a Disk, so it can be the
// Source of a further format.
//
// One law holds for every format: Open(Layout(d)) equals d, followed by zeros
// where the format must round the size up. Layout is a pure function of the
// disk's size, its allocation map and [Facts], and reads no guest byte: the
// same disk gives the same bytes on every host, mount and release.
//
// Images come from strangers. Every offset, count and length is checked
// against the source before use, nothing outside the file is ever opened, and
// no allocation is larger than a small multiple of the tables that the file
// really holds. Three errors say why an image is not read: [ErrFormat] (not
// this format), [ErrCorrupt] (this format, but damaged) and [ErrUnsupported]
// (a feature that is refused by name).
//
// Everything here is safe for concurrent use once it is built.
package codec

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
)

var (
	// ErrFormat says that the bytes are not the format they were opened as.
	ErrFormat = errors.New("wrong format")
	// ErrCorrupt says that an image breaks the rules of its format.
	ErrCorrupt = errors.New("damaged image")
	// ErrUnsupported says that an image is sound but needs what is not read
	// here: another file, a key, or an unknown incompatible feature.
	ErrUnsupported = errors.New("not supported")
	// ErrTooLarge says that a disk does not fit a format's limits.
	ErrTooLarge = errors.New("disk too large for the format")
	// ErrNotPossible says that a view cannot show a disk, which is sound: it
	// only takes what is stored in another way. The text says why.
	ErrNotPossible = errors.New("not possible for this disk")
)

// Corruptf returns an [ErrCorrupt] that names the field, its place and value.
func Corruptf(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, a...))
}

// Unsupportedf returns an [ErrUnsupported] that names the feature.
func Unsupportedf(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrUnsupported, fmt.Sprintf(format, a...))
}

// ReaderAt is io.ReaderAt that can be cancelled. It fills p whole; n < len(p)
// comes only with an error, io.EOF at the end. It may be called concurrently.
type ReaderAt interface {
	ReadAt(ctx context.Context, p []byte, off int64) (n int, err error)
}

// Source is stored bytes with a size: one immutable version of an object, or
// a staged file.
type Source interface {
	ReaderAt
	Size() int64 // bytes
}

// Extent is a run of bytes with one status. Zero means that it is not
// allocated and reads as zeros; data may happen to be zeros too.
type Extent struct {
	Off, Len int64
	Zero     bool
}

// Disk is what a guest sees.
type Disk interface {
	Source
	// Extents yields the cover of [off, off+n), cut at the disk's end:
	// ordered, gapless and coalesced (neighbours differ in Zero). After
	// an error it yields nothing more.
	Extents(ctx context.Context, off, n int64) iter.Seq2[Extent, error]
}

// Coded is a Disk whose reads cost decoding: a cache of decoded blocks in
// front of it pays. Unit is the block size in bytes that decodes as a whole,
// a power of two, or 0 when nothing is encoded after all.
type Coded interface {
	Disk
	Unit() int64
}

// Located is a Disk whose bytes lie in its source as they are, unless its Unit is
// not 0: whoever reads the source may then read ahead in the order of the disk.
type Located interface {
	Coded
	// Source is where they lie.
	Source() Source
	// Locate says where the bytes from off on lie, as far as they lie together
	// and at most limit of them: n > 0 bytes, from at on in the source, or zeros
	// when at is negative. off and off+limit are inside the disk. It does no I/O.
	Locate(off, limit int64) (at, n int64)
}

// Noted is a Disk with remarks for the operator, such as snapshots that are
// not carried over.
type Noted interface {
	Disk
	Notes() []string
}

// Format is both directions of one disk format.
type Format interface {
	View
	// Probe reports, without I/O, whether an image of size bytes that begins
	// with head and ends with tail (see [HeadLen] and [TailLen]; both shorter
	// for a short image) is of this format.
	Probe(head, tail []byte) bool
	// Open reads the headers and tables of src. It checks everything that
	// a later read relies on: reads fail only where the source fails or
	// encoded data is damaged. Errors are one of the package's three kinds
	// or the source's own.
	Open(ctx context.Context, src Source) (Disk, error)
}

// View is the writing half of a Format, and the whole of a flavour that is
// shown but never opened under its own name.
type View interface {
	// Name is the format's name: its file suffix, flag value and log key.
	Name() string
	// Layout lays d out. It reads d's map and size, never its bytes.
	// [ErrTooLarge] when d does not fit, [ErrNotPossible] where a view
	// takes only some disks.
	Layout(ctx context.Context, d Disk, f Facts) (*File, error)
}

// ReadFull reads exactly len(p) bytes of src at off. Reading past the end is
// an ErrCorrupt that names what was read, since a table lies there.
func ReadFull(ctx context.Context, src Source, p []byte, off int64, what string) error {
	if off < 0 || off > src.Size() || int64(len(p)) > src.Size()-off {
		return Corruptf("%s at %#x, %d bytes: past the end of the file (%d bytes)", what, off, len(p), src.Size())
	}
	n, err := src.ReadAt(ctx, p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %s at %#x: %w", what, off, err)
}

// entryPiece bounds one read of a table.
const entryPiece = 1 << 20

// ReadEntries reads a table of n entries of size bytes each that lies at off,
// in pieces of at most 1 MiB, and calls each with every entry in order. The
// bytes are only valid during the call. A table past the end of the file is an
// ErrCorrupt that names what was read; an error of each ends the reading.
func ReadEntries(ctx context.Context, src Source, off, n int64, size int, what string, each func(i int64, b []byte) error) error {
	if off < 0 || n < 0 || off > src.Size() || n > (src.Size()-off)/int64(size) {
		return Corruptf("%s at %#x, %d entries of %d bytes: past the end of the file (%d bytes)", what, off, n, size, src.Size())
	}
	per := min(n, int64(entryPiece/size))
	buf := make([]byte, per*int64(size))
	for i := int64(0); i < n; {
		p := buf[:min(per, n-i)*int64(size)]
		if err := ReadFull(ctx, src, p, off+i*int64(size), what); err != nil {
			return err
		}
		for ; len(p) > 0; i++ {
			if err := each(i, p[:size:size]); err != nil {
				return err
			}
			p = p[size:]
		}
	}
	return nil
}

// Up rounds x up to a multiple of a. Both are non-negative and the result
// must fit; callers bound x by [MaxSize] first.
func Up(x, a int64) int64 { return Ceil(x, a) * a }

// Ceil divides x by a, rounding up.
func Ceil(x, a int64) int64 {
	q := x / a
	if x%a != 0 {
		q++
	}
	return q
}

// MaxSize bounds the size of any disk, 8 EiB less 4 GiB: sums of it with a
// table or a rounding stay within int64.
const MaxSize = 1<<63 - 1<<32
