package stage

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"imagefs/codec"
	"imagefs/codec/qcow2"
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
	slots   chan struct{} // one per part under way
}

// parallelParts is how many parts are under way at once, of all imports.
const parallelParts = 4

// NewImporter returns an Importer into cat, whose store must take objects in
// parts.
func NewImporter(store remote.Store, cat *catalog.Catalog, formats []codec.Format) (*Importer, error) {
	up, ok := store.(remote.Uploader)
	if !ok {
		return nil, fmt.Errorf("import: %w: objects in parts", remote.ErrUnsupported)
	}
	return &Importer{store, up, cat, formats, make(chan struct{}, parallelParts)}, nil
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

	// Starting is called with the key of the object to be before the store
	// hears of it; an error ends the import. It may be nil.
	Starting func(key string) error
	// Encoding is called, from several goroutines, with the byte of a raw
	// disk up to which it is encoded, about. It may be nil.
	Encoding func(done int64)
	// Progress is called, from several goroutines, with the bytes that the
	// store has taken of all that it will. It may be nil.
	Progress func(sent, total int64)
	// Committing is called when the store has the object, before anybody
	// sees it; an error ends the import. It may be nil.
	Committing func() error

	sent *stream // what was sent while the file was written, or nil
}

// Checked is a job whose file was found good.
type Checked struct {
	*Job
	im     *Importer
	src    *local
	format codec.Format
	disk   codec.Disk
}

// Format is the format of the file.
func (c *Checked) Format() string { return c.format.Name() }

// Check looks at a file, and stores nothing. An error that lies in the content
// wraps [ErrRefused].
func (im *Importer) Check(ctx context.Context, j *Job) (*Checked, error) {
	if err := catalog.CheckName(j.Image); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrName, err)
	}
	c := &Checked{Job: j, im: im, src: &local{j.File, j.Size}}
	err := func() (err error) {
		if j.Declared {
			c.format, err = im.byName("raw")
		} else {
			c.format, err = detect(ctx, im.formats, c.src, j.Format)
		}
		if err != nil {
			return err
		}
		c.disk, err = Validate(ctx, c.format, c.src)
		return err
	}()
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

func (im *Importer) byName(name string) (codec.Format, error) {
	for _, f := range im.formats {
		if f.Name() == name {
			return f, nil
		}
	}
	return nil, fmt.Errorf("%w: unknown format %q", codec.ErrUnsupported, name)
}

// Import stores the file and commits the disk to the catalog: the image is
// there for all when it returns. After an error nothing is visible of the
// attempt.
func (c *Checked) Import(ctx context.Context) (*catalog.Image, error) {
	im := c.im
	o, d, err := im.put(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("store disk %d of %q: %w", c.Number, c.Image, err)
	}
	d.Key, d.Size, d.VirtualSize = o.Key, o.Size, c.disk.Size()
	d.Modified, d.Declared = c.Modified.UTC(), c.Declared
	if err = ctx.Err(); err == nil && c.Committing != nil {
		err = c.Committing()
	}
	if err != nil {
		_ = im.store.Delete(context.WithoutCancel(ctx), o.Key) // as below
		return nil, fmt.Errorf("commit disk %d of %q: %w", c.Number, c.Image, err)
	}
	img, err := im.cat.PutDisk(ctx, c.Image, c.Number, d, c.Base)
	if err == nil {
		return img, nil
	}
	if errors.Is(err, catalog.ErrConflict) {
		// Nothing names the object, and nothing will. Where this fails,
		// the collector of garbage finds it.
		_ = im.store.Delete(context.WithoutCancel(ctx), o.Key)
	}
	return nil, fmt.Errorf("commit disk %d of %q: %w", c.Number, c.Image, err)
}

// put stores the object of a disk and describes it.
func (im *Importer) put(ctx context.Context, c *Checked) (o remote.Object, d catalog.EntryDisk, err error) {
	if c.format.Name() != "raw" {
		d.Format = c.format.Name()
		o, d.SHA256, err = im.upload(ctx, c.Job, d.Format, c.File, c.Size)
		return o, d, err
	}
	c.sent.abort() // its bytes are not those of the object
	f, err := os.CreateTemp(c.Scratch, "object-*.qcow2")
	if err != nil {
		return o, d, err
	}
	defer f.Close()
	defer os.Remove(f.Name())
	sum := make(chan hashed, 1)
	go func() { sum <- hashRaw(ctx, c.File, c.Size) }()
	// A local file is a raw disk that knows its holes.
	size, err := qcow2.Compress(ctx, f, &watched{c.src, c.Encoding}, runtime.GOMAXPROCS(0))
	d.Format = "qcow2"
	h := <-sum
	d.Original = &catalog.Original{Format: "raw", Size: c.Size, SHA256: h.sum}
	err = cmp.Or(err, h.err)
	if err != nil {
		return o, d, fmt.Errorf("encode in %q: %w", filepath.Dir(f.Name()), err)
	}
	// Read back while it is sent: it counts for nothing before the commit.
	good := make(chan error, 1)
	go func() { good <- verify(ctx, &local{f, size}, c.src) }()
	o, d.SHA256, err = im.upload(ctx, c.Job, d.Format, f, size)
	if verr := <-good; verr != nil && err == nil {
		_ = im.store.Delete(context.WithoutCancel(ctx), o.Key)
		err = verr
	}
	return o, d, err
}

type hashed struct {
	sum string
	err error
}

// hashRaw is the SHA-256 of a raw disk, or "" for one that is so much larger
// than its data that hashing holes would take longer than all else. The hash of
// the stored object says as much.
func hashRaw(ctx context.Context, f *os.File, size int64) hashed {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err == nil && size > 4*max(st.Blocks*512, 1<<30) {
		return hashed{}
	}
	s, err := sumOf(ctx, f, size)
	return hashed{s, err}
}

// sumOf is the SHA-256 of the first size bytes of r, in hex.
func sumOf(ctx context.Context, r io.ReaderAt, size int64) (string, error) {
	h := sha256.New()
	if err := sumInto(ctx, h, r, 0, size); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// sumInto writes the bytes of r from off to end to w.
func sumInto(ctx context.Context, w io.Writer, r io.ReaderAt, off, end int64) error {
	buf := make([]byte, min(1<<20, max(end-off, 0)))
	for off < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := buf[:min(int64(len(buf)), end-off)]
		if n, err := r.ReadAt(p, off); n < len(p) {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
		}
		if _, err := w.Write(p); err != nil {
			return err
		}
		off += int64(len(p))
	}
	return nil
}
