package image

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"slices"
	"sync"
	"time"

	"imagefs/cache"
	"imagefs/codec"
	"imagefs/codec/raw"
	"imagefs/remote"
	"imagefs/remote/catalog"
)

// mapBlock is the granularity of the allocation map every view follows from.
const mapBlock = 64 << 10

// Disk is one stored version of a disk, opened.
type Disk struct {
	Image  *catalog.Image
	Number int
	Format string        // it is stored in
	Import string        // the format it was copied in as: its own bytes are shown in that
	Object remote.Object // it is stored as
	Size   int64         // of the guest's disk, bytes
	Data   int64         // of it allocated, in blocks of the map, bytes
	Notes  []string      // remarks of the reader

	modified time.Time // of the file that was copied in, or else of the object

	src     codec.Source
	guest   codec.Disk
	streams *streams // of guest, for views that hand them on
	exact   int64    // bytes of an imported raw disk, which the stored form rounds up
	facts   codec.Facts

	mu    sync.Mutex
	files map[string]*File   // guarded by mu
	packs map[uint64]packing // guarded by mu; by their inode numbers, of images whose first disk this is
}

// File is a disk in one format.
type File struct {
	codec.Disk           // the file's bytes, size and holes
	View       string    // name of the format
	Of         *Disk     // the disk it shows
	Blocks     uint64    // of 512 bytes that hold data
	Ino        uint64    // derived from disk, version and format
	ModTime    time.Time // of the stored object
}

// Slice implements [codec.Slicer].
func (f *File) Slice(ctx context.Context, off int64, n int) ([]byte, error) {
	return codec.Slice(ctx, f.Disk, off, n)
}

// ErrNotShown says that a disk does not fit a format, so that it has no file.
var ErrNotShown = errors.New("not shown in this format")

// assemble puts the caches and the map around a disk just opened.
func (o *Opener) assemble(ctx context.Context, src codec.Source, guest codec.Disk, im *catalog.Image, d catalog.Disk) (*Disk, error) {
	if guest.Size() < 0 || guest.Size() > codec.MaxSize {
		return nil, codec.Corruptf("virtual size %d", guest.Size())
	}
	m, err := codec.NewMap(ctx, guest, mapBlock)
	if err != nil {
		return nil, err
	}
	disk := &Disk{
		Image: im, Number: d.Number, Format: d.Format, Object: d.Object, Size: guest.Size(),
		Data:   min(m.Count()*mapBlock, guest.Size()),
		Import: d.Format, modified: d.Object.ModTime, src: src, files: make(map[string]*File), packs: make(map[uint64]packing),
		facts: codec.Facts{
			ID: im.ID, Number: d.Number, Name: fmt.Sprintf("disk%d", d.Number),
			Created: im.Created, Content: content(d, m),
		},
	}
	if !d.Modified.IsZero() {
		disk.modified = d.Modified
	}
	if n, ok := guest.(codec.Noted); ok {
		disk.Notes = n.Notes()
	}
	if d.Original != nil {
		if d.Original.Format != "raw" || d.Original.Size < 0 || d.Original.Size > guest.Size() {
			return nil, codec.Corruptf("%d bytes of %s as the original of a disk of %d", d.Original.Size, d.Original.Format, guest.Size())
		}
		disk.Import, disk.exact = d.Original.Format, d.Original.Size
	}
	var readers []*cache.Reader
	shown := guest
	if r, ok := src.(*cache.Reader); ok {
		readers = append(readers, r)
		if l, ok := guest.(codec.Located); ok && l.Unit() == 0 && l.Source() == src {
			shown = &placed{guest, r.Placed(guest.Size(), l.Locate)}
		}
	}
	disk.guest = codec.Mapped(shown, m)
	if c, ok := guest.(codec.Coded); ok && c.Unit() > 0 {
		block := max(c.Unit(), mapBlock)
		r := o.cfg.Cache.Reader(fetch{guest}, guest.Size(), cache.ReaderConfig{
			Block: block, Span: block, Parallel: int(max(decodeAhead/block, 2)), Scan: decodeScan,
		})
		disk.guest = &decoded{m, r, block}
		readers = append(readers, r)
	}
	disk.streams = &streams{Disk: disk.guest, stored: guest, store: o.cfg.Store, index: d.Index}
	more, note := o.setWindows(ctx, guest, d.Index)
	readers = append(readers, more...)
	if note != "" {
		disk.Notes = append(slices.Clip(disk.Notes), note)
	}
	// A handle may use the disk long after it left the Opener's list, so
	// the cache gives its blocks up when nothing can reach the disk any more.
	runtime.AddCleanup(disk, closeAll, readers)
	return disk, nil
}

func closeAll(readers []*cache.Reader) {
	for _, r := range readers {
		r.Close()
	}
}

// decodeAhead is how far ahead of a reader decoding goes. Each block is decoded
// by itself, so that every processor has one, and several readers' share.
const decodeAhead = 4 << 20

// decodeScan is how far a disk is read in order until its decoded blocks are let go
// once they were read: they can be made again, and the kernel keeps what it was told.
const decodeScan = 16 << 20

// content names what the disk holds. It must be the same for a copy of the
// object elsewhere, so it is no ETag: the hash an import recorded, or what the
// object's size and its map say.
func content(d catalog.Disk, m *codec.Map) (c [32]byte) {
	sha := d.SHA256
	if d.Original != nil && d.Original.SHA256 != "" {
		sha = d.Original.SHA256
	}
	if b, err := hex.DecodeString(sha); err == nil && len(b) == len(c) {
		return [32]byte(b)
	}
	sum := m.Sum()
	return sha256.Sum256(binary.BigEndian.AppendUint64(sum[:], uint64(d.Object.Size)))
}

// fetch lets the cache read a disk as it reads an object.
type fetch struct{ d codec.Disk }

func (f fetch) ReadRange(ctx context.Context, p []byte, off int64) error {
	if n, err := f.d.ReadAt(ctx, p, off); n < len(p) {
		return err
	}
	return nil
}

// placed is a disk that is read ahead in its own order, whatever order its blocks
// lie in.
type placed struct {
	codec.Disk
	p *cache.Placed
}

func (d *placed) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return d.p.ReadAt(ctx, p, off)
}

func (d *placed) Slice(ctx context.Context, off int64, n int) ([]byte, error) {
	return d.p.Slice(ctx, off, n)
}

// decoded is a disk behind a cache of decoded blocks, which what the map
// leaves out never enters.
type decoded struct {
	m     *codec.Map
	r     *cache.Reader
	block int64 // of r, in bytes
}

func (d *decoded) Size() int64 { return d.m.Size() }

func (d *decoded) Extents(ctx context.Context, off, n int64) iter.Seq2[codec.Extent, error] {
	return d.m.Extents(ctx, off, n)
}

func (d *decoded) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return codec.ReadParts(ctx, p, off, d.m.Size(), d.readPart)
}

// Slice implements [codec.Slicer], where the range is data in one block.
func (d *decoded) Slice(ctx context.Context, off int64, n int) ([]byte, error) {
	if end, zero := d.m.Run(off); zero || off+int64(n) > end || int64(n) > d.block {
		return nil, nil
	}
	return d.r.Slice(ctx, off, n)
}

func (d *decoded) readPart(ctx context.Context, p []byte, off int64) (int, error) {
	end, zero := d.m.Run(off)
	p = p[:min(int64(len(p)), end-off)]
	if zero {
		clear(p)
		return len(p), nil
	}
	return d.r.ReadAt(ctx, p, off)
}

// File returns the disk in a format, laid out at the first call. ErrNotShown
// wraps the reason when the disk does not fit it.
func (d *Disk) File(ctx context.Context, v codec.View) (*File, error) {
	if _, ok := v.(codec.Reframing); ok {
		// Other views do not wait for an index.
		if err := d.ready(ctx, v); err != nil {
			return nil, err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if f := d.files[v.Name()]; f != nil {
		return f, nil
	}
	f, err := d.layout(ctx, v)
	if errors.Is(err, codec.ErrTooLarge) || errors.Is(err, codec.ErrNotPossible) {
		return nil, fmt.Errorf("%w: %w", ErrNotShown, err)
	} else if err != nil {
		return nil, fmt.Errorf("%q as %s: %w", d.Object.Key, v.Name(), err)
	}
	d.files[v.Name()] = f
	return f, nil
}

func (d *Disk) layout(ctx context.Context, v codec.View) (f *File, err error) {
	f = &File{View: v.Name(), Of: d, ModTime: d.modified, Ino: d.ino(v.Name())}
	switch {
	case v.Name() != d.Import:
		f.Disk, err = v.Layout(ctx, d.offered(v), d.facts)
	case d.Import == d.Format:
		// What was copied in is what is read back: the stored bytes.
		f.Disk, err = raw.Format.Open(ctx, d.src)
	default:
		c := new(codec.File)
		c.Guest(d.guest, 0, d.exact)
		f.Disk = c
	}
	if err != nil {
		return nil, err
	}
	if f.Blocks, err = blocks(ctx, f); err != nil {
		return nil, err
	}
	return f, nil
}

// Stored reports whether the file is what was copied in, not a view.
func (f *File) Stored() bool { return f.View == f.Of.Import }

// ino derives the inode number: a client that sees it change during a copy
// takes the file for another one.
func (d *Disk) ino(view string) uint64 {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %d %x %d %q", d.Object.Key, d.Object.ETag, d.Object.Size, d.Image.ID, d.Number, view)
	return Ino(h.Sum(nil))
}

// Ino makes an inode number of a hash: never 0, never the root's 1, and within
// 63 bits for programs that keep it signed.
func Ino(sum []byte) uint64 { return binary.BigEndian.Uint64(sum)>>1 | 2 }
