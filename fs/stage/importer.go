package stage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"imagefs/codec"
	"imagefs/remote"
	"imagefs/remote/catalog"
)

// ErrRefused says that a file is not taken: it is damaged, or not what its name
// says. What is wrong is wrapped beside it.
var ErrRefused = errors.New("image refused")

// Importer brings files into a catalog. It is safe for concurrent use.
type Importer struct {
	store   remote.Store
	up      remote.Uploader
	cat     *catalog.Catalog
	formats []codec.Format
	packs   []codec.Package
	slots   chan struct{} // one per part under way
}

// parallelParts is how many parts are under way at once, of all imports.
const parallelParts = 4

// NewImporter returns an Importer of disks and packages into cat, whose store
// must take objects in parts.
func NewImporter(store remote.Store, cat *catalog.Catalog, formats []codec.Format, packs []codec.Package) (*Importer, error) {
	up, ok := store.(remote.Uploader)
	if !ok {
		return nil, fmt.Errorf("import: %w: objects in parts", remote.ErrUnsupported)
	}
	return &Importer{store, up, cat, formats, packs, make(chan struct{}, parallelParts)}, nil
}

// Job is one file to import. The file is read and never written, and nobody
// else writes to it meanwhile.
type Job struct {
	Target
	Declared bool      // a raw disk whatever its content looks like
	Base     string    // key of the object that the disk has now, "" for none
	Modified time.Time // of the file
	File     *os.File
	Size     int64
	Scratch  string // folder for an encoded copy, which a raw disk needs

	// Starting is called with the key of each object to be before the store
	// hears of it; an error ends the import. It may be nil.
	Starting func(key string) error
	// Encoding is called, from several goroutines, with the byte of a raw
	// disk up to which it is encoded, about. It may be nil.
	Encoding func(done int64)
	// Progress is called, from several goroutines, with the bytes that the
	// store has taken of all that it will. It may be nil.
	Progress func(sent, total int64)
	// Committing is called when the store has all objects, before anybody
	// sees them; an error ends the import. It may be nil.
	Committing func() error

	// Piece finds a file beside the one to import, by its plain name: a VMDK
	// may be several. It may be nil.
	Piece func(name string) (PieceFile, bool)

	sent   *stream // what was sent while the file was written, or nil
	pieces []*File // that Piece found, locked
}

// Checked is a job whose file was found good.
type Checked struct {
	*Job
	im    *Importer
	disks []*member         // in the file: one, or those of a package
	props map[string]string // of the image that a package makes
	notes []string          // for the operator

	stored, total int64 // bytes of the disks of a package: that the store has, and of all
}

// member is one disk of what is imported.
type member struct {
	number int
	src    *local     // its bytes, which are stored as they are; nil where raw is not a file
	raw    codec.Disk // what is stored encoded in their place, or nil
	format codec.Format
	disk   codec.Disk   // opened
	index  *codec.Index // of it; nil if there is nothing to keep
}

// Format is the format of the file, or the kind of package that it is.
func (c *Checked) Format() string {
	if c.Package != "" {
		return c.Package
	}
	return c.disks[0].format.Name()
}

// Notes are remarks for the operator: what the file holds and an import does not
// carry over, or what does not fit together and does no harm.
func (c *Checked) Notes() []string {
	notes := slices.Clone(c.notes)
	for _, p := range c.disks {
		if n, ok := p.disk.(codec.Noted); ok {
			for _, note := range n.Notes() {
				notes = append(notes, fmt.Sprintf("disk %d: %s", p.number, note))
			}
		}
	}
	return notes
}

// Check looks at a file, and stores nothing. An error that lies in the content
// wraps [ErrRefused].
func (im *Importer) Check(ctx context.Context, j *Job) (*Checked, error) {
	if err := catalog.CheckName(j.Image); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrName, err)
	}
	c := &Checked{Job: j, im: im}
	var err error
	if j.Package != "" {
		err = c.checkPackage(ctx)
	} else {
		err = c.checkDisk(ctx)
	}
	if err == nil {
		return c, nil
	}
	for _, kind := range []error{codec.ErrCorrupt, codec.ErrFormat, codec.ErrUnsupported, codec.ErrTooLarge} {
		if errors.Is(err, kind) {
			return nil, fmt.Errorf("%w: %w", ErrRefused, err)
		}
	}
	return nil, err
}

// checkDisk checks a file that is a disk.
func (c *Checked) checkDisk(ctx context.Context) (err error) {
	p := &member{number: c.Number, src: &local{f: c.File, size: c.Size}}
	if is, err := c.isDescriptor(ctx, p.src); err != nil || is {
		if err == nil {
			err = c.checkPieces(ctx, p.src)
		}
		return err
	}
	if c.Declared {
		p.format, err = c.im.byName("raw")
	} else {
		p.format, err = detect(ctx, c.im.formats, p.src, c.Job.Format)
	}
	if err != nil {
		return err
	}
	if p.format.Name() == "raw" {
		p.raw = p.src
	}
	p.disk, p.index, err = validate(ctx, p.format, p.src)
	c.disks = []*member{p}
	return err
}

func (im *Importer) byName(name string) (codec.Format, error) {
	for _, f := range im.formats {
		if f.Name() == name {
			return f, nil
		}
	}
	return nil, fmt.Errorf("%w: unknown format %q", codec.ErrUnsupported, name)
}

// Import stores the file and commits what it holds to the catalog: the image
// is there for all when it returns. After an error nothing is visible of the
// attempt.
func (c *Checked) Import(ctx context.Context) (img *catalog.Image, err error) {
	var ds []catalog.EntryDisk
	for _, p := range c.disks {
		d, err := c.putDisk(ctx, p)
		if err != nil {
			c.im.remove(ctx, ds)
			return nil, fmt.Errorf("store disk %d of %q: %w", p.number, c.Image, err)
		}
		ds = append(ds, d)
	}
	if err = ctx.Err(); err == nil && c.Committing != nil {
		err = c.Committing()
	}
	if err != nil {
		c.im.remove(ctx, ds)
		return nil, fmt.Errorf("commit %s: %w", c.what(), err)
	}
	if c.Package != "" {
		img, err = c.im.cat.PutImage(ctx, c.Image, catalog.NewImage{Disks: ds, Props: c.props})
	} else {
		img, err = c.im.cat.PutDisk(ctx, c.Image, c.Number, ds[0], c.Base)
	}
	if err == nil {
		for _, p := range c.disks {
			p.index.Close()
		}
		return img, nil
	}
	if errors.Is(err, catalog.ErrConflict) || errors.Is(err, fs.ErrExist) {
		c.im.remove(ctx, ds) // nothing names them, and nothing will
	}
	return nil, fmt.Errorf("commit %s: %w", c.what(), err)
}

// what names the target for people.
func (c *Checked) what() string {
	if c.Package != "" {
		return fmt.Sprintf("image %q", c.Image)
	}
	return fmt.Sprintf("disk %d of %q", c.Number, c.Image)
}

// remove deletes the objects of disks that nothing names. Where that fails, the
// collector of garbage finds them.
func (im *Importer) remove(ctx context.Context, ds []catalog.EntryDisk) {
	for _, d := range ds {
		_ = im.store.Delete(context.WithoutCancel(ctx), d.Key)
		if d.Index != nil {
			_ = im.store.Delete(context.WithoutCancel(ctx), d.Index.Key)
		}
	}
}
