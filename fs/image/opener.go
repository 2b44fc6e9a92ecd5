package image

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"imagefs/cache"
	"imagefs/codec"
	"imagefs/remote"
	"imagefs/remote/catalog"
)

// Config says what an Opener works with.
type Config struct {
	Store remote.Store
	Cache *cache.Cache
	// Tier is where the stored blocks of a version are kept below the Cache,
	// which is nil for nowhere; nil if that is so for all.
	Tier    func(remote.Object) cache.Tier
	Formats []codec.Format // that are read, in the order of detection
	Views   []codec.View   // that are shown

	// MaxOpen is how many disks stay open when nothing uses them; default 64.
	// Each holds its tables: about 8 bytes per allocated block.
	MaxOpen int
	// OpenTimeout bounds the opening of one disk; default 60 s.
	OpenTimeout time.Duration
}

// Opener opens disks and keeps the ones used last.
type Opener struct {
	cfg   Config
	local bool // the store's bytes are in this machine's page cache

	mu    sync.Mutex
	disks map[version]*opening // guarded by mu
	lru   *list.List           // guarded by mu; of *opening that are done, newest first
}

// version names the bytes and the reading of a disk. Two images may use one
// object; their views differ in identity. An index that is made later is one
// more way to read it.
type version struct {
	key, etag, format string
	index             string
	size              int64
	id                [16]byte
	number            int
}

func newVersion(im *catalog.Image, d catalog.Disk) version {
	v := version{
		key: d.Object.Key, etag: d.Object.ETag, format: d.Format, size: d.Object.Size,
		id: im.ID, number: d.Number,
	}
	if d.Index != nil {
		v.index = d.Index.Key + " " + d.Index.SHA256
	}
	return v
}

type opening struct {
	v    version
	done chan struct{} // closed when disk and err are set
	disk *Disk
	err  error
	elem *list.Element // guarded by Opener.mu; nil while opening
}

// NewOpener returns an Opener. It does no I/O.
func NewOpener(cfg Config) *Opener {
	if cfg.MaxOpen <= 0 {
		cfg.MaxOpen = 64
	}
	if cfg.OpenTimeout <= 0 {
		cfg.OpenTimeout = time.Minute
	}
	return &Opener{cfg: cfg, local: remote.IsLocal(cfg.Store), disks: make(map[version]*opening), lru: list.New()}
}

// Views are the views that are shown of each disk.
func (o *Opener) Views() []codec.View { return o.cfg.Views }

// ViewsOf are the views of one disk: those that are shown of each, and the
// format it was copied in as, whatever is shown: what was copied in is there to
// be read back.
func (o *Opener) ViewsOf(d catalog.Disk) []codec.View {
	for _, v := range o.cfg.Views {
		if v.Name() == d.Imported() {
			return o.cfg.Views
		}
	}
	for _, f := range o.cfg.Formats {
		if f.Name() == d.Imported() {
			return append(slices.Clip(o.cfg.Views), f)
		}
	}
	return o.cfg.Views
}

// Open returns disk d of im, opened. An error that lies in the image itself is
// remembered for that version; one that may pass is not.
func (o *Opener) Open(ctx context.Context, im *catalog.Image, d catalog.Disk) (*Disk, error) {
	if im.Err != nil {
		return nil, fmt.Errorf("image %q: %w: %w", im.Name, codec.ErrCorrupt, im.Err)
	}
	v := newVersion(im, d)
	o.mu.Lock()
	p := o.disks[v]
	if p == nil {
		p = &opening{v: v, done: make(chan struct{})}
		o.disks[v] = p
		// Detached: whoever asked first may leave, the others wait on.
		go o.run(p, im, d)
	} else if p.elem != nil {
		o.lru.MoveToFront(p.elem)
	}
	o.mu.Unlock()
	select {
	case <-p.done:
		return p.disk, p.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Hidden reports whether it is known, without opening anything, that d has no
// file in view v.
func (o *Opener) Hidden(im *catalog.Image, d catalog.Disk, v codec.View) bool {
	disk := o.opened(im, d)
	return disk != nil && errors.Is(disk.Possible(v), ErrNotShown)
}

// opened is a disk that is open already, or nil.
func (o *Opener) opened(im *catalog.Image, d catalog.Disk) *Disk {
	o.mu.Lock()
	p := o.disks[newVersion(im, d)]
	o.mu.Unlock()
	if p == nil {
		return nil
	}
	select {
	case <-p.done:
		return p.disk
	default:
		return nil
	}
}

func (o *Opener) run(p *opening, im *catalog.Image, d catalog.Disk) {
	ctx, cancel := context.WithTimeout(context.Background(), o.cfg.OpenTimeout)
	defer cancel()
	p.disk, p.err = o.open(ctx, im, d)
	if p.err != nil {
		p.err = fmt.Errorf("open %q as %s: %w", d.Object.Key, d.Format, p.err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	close(p.done)
	if p.err != nil && !permanent(p.err) {
		delete(o.disks, p.v)
		return
	}
	p.elem = o.lru.PushFront(p)
	for o.lru.Len() > o.cfg.MaxOpen {
		last := o.lru.Back()
		q := o.lru.Remove(last).(*opening)
		delete(o.disks, q.v)
		// Not closed: a handle may still read it. Its cached blocks
		// age out, and its memory goes with the last handle.
	}
}

// Release lets go of all disks that are open only for the next time; those in use
// are opened anew by whoever comes after.
func (o *Opener) Release() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.lru.Len() > 0 {
		delete(o.disks, o.lru.Remove(o.lru.Back()).(*opening).v)
	}
}

// permanent reports whether err lies in the bytes of the version.
func permanent(err error) bool {
	return errors.Is(err, codec.ErrCorrupt) || errors.Is(err, codec.ErrUnsupported) || errors.Is(err, codec.ErrFormat) || errors.Is(err, codec.ErrTooLarge)
}

func (o *Opener) open(ctx context.Context, im *catalog.Image, d catalog.Disk) (*Disk, error) {
	var src codec.Source = &Object{o.cfg.Store, d.Object}
	if !o.local {
		r := o.reader(d.Object)
		r.Want(0, firstFetch)
		src = r
	}
	f, err := o.detect(ctx, src, d.Format)
	if err != nil {
		return nil, err
	}
	guest, err := f.Open(ctx, src)
	if err != nil {
		return nil, err
	}
	return o.assemble(ctx, src, guest, im, d)
}

// firstFetch is how much of an object is fetched at once when it is opened: most
// formats have their first tables there.
const firstFetch = 512 << 10

// reader reads a version through the caches.
func (o *Opener) reader(v remote.Object) *cache.Reader {
	var rc cache.ReaderConfig
	if o.cfg.Tier != nil {
		rc.Tier = o.cfg.Tier(v)
	}
	return o.cfg.Cache.Reader(&Object{o.cfg.Store, v}, v.Size, rc)
}

// detect holds content and declared format together: they must agree, or a
// guest could choose how its disk is read.
func (o *Opener) detect(ctx context.Context, src codec.Source, format string) (codec.Format, error) {
	head, tail, err := codec.Ends(ctx, src)
	if err != nil {
		return nil, err
	}
	found, err := codec.Detect(o.cfg.Formats, head, tail)
	if err != nil {
		return nil, err
	}
	switch {
	case found.Name() == format:
	case found.Name() == "raw":
		return nil, fmt.Errorf("%w: the content carries no signature of %s", codec.ErrFormat, format)
	default:
		return nil, fmt.Errorf("%w: the content is %s", codec.ErrFormat, found.Name())
	}
	return found, nil
}

// Object is a version in the store as a Source, and as what the cache fetches.
type Object struct {
	Store   remote.Store
	Version remote.Object
}

// Size is the size of the object.
func (s *Object) Size() int64 { return s.Version.Size }

// ReadRange fills p with the bytes from off on.
func (s *Object) ReadRange(ctx context.Context, p []byte, off int64) error {
	return s.Store.ReadRange(ctx, s.Version, p, off)
}

// ReadAt implements [codec.Source].
func (s *Object) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return codec.ReadParts(ctx, p, off, s.Version.Size, s.readPart)
}

func (s *Object) readPart(ctx context.Context, p []byte, off int64) (int, error) {
	if err := s.Store.ReadRange(ctx, s.Version, p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

var (
	_ codec.Source = (*Object)(nil)
	_ codec.Source = (*cache.Reader)(nil)
)
