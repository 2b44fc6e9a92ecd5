package stage

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"imagefs/codec"
	"imagefs/remote/catalog"
)

// Config says what a Spool works with.
type Config struct {
	Dir      string // of this store's staged files on the local disk; made if missing
	Importer *Importer
	Catalog  *catalog.Catalog
	Exts     Exts // extensions of names, and what they promise

	WriteBack bool          // a close returns when the spool has the file durably
	Quiet     time.Duration // without a writer, before a file opened for both is committed; default 2 s

	Log    *slog.Logger
	Report func(op, path string, err error) // of failures for the operator; may be nil
}

// Spool holds the files that are being copied in. It is safe for concurrent
// use.
type Spool struct {
	cfg  Config
	im   *Importer
	dir  string   // of this process
	lock *os.File // says that the process lives

	mu     sync.Mutex
	tree   map[place]*File // guarded by mu; what is shown
	all    map[*File]bool  // guarded by mu; also what is not shown
	claims map[claim]*File // guarded by mu
	drafts map[string]bool // guarded by mu; images without a disk
	closed bool            // guarded by mu

	work  sync.WaitGroup // commits in the background
	slots chan struct{}  // one per such commit at work
	stop  context.Context
	end   context.CancelFunc
}

// place is where a file is shown: in the folder of an image, or in images/.
type place struct{ folder, name string }

// claim is a replacement that a thread is about to open.
type claim struct {
	place
	pid uint32
}

const (
	filesName  = "files"
	draftsName = "drafts"
	lockName   = "lock"

	claimTime   = 5 * time.Second
	minFree     = 64 << 20 // bytes that the disk of the spool must have left
	backCommits = 2        // commits at work in the background
)

// Create makes a new file. The error wraps fs.ErrExist when the name is taken,
// and [ErrName] when no file of that name can ever become a disk.
func (s *Spool) Create(folder, name string) (*File, error) {
	if err := s.allowed(folder, name); err != nil {
		return nil, err
	}
	f, err := s.make(record{Folder: folder, Name: name, State: Writing, Base: s.current(folder, name)})
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := place{folder, name}
	if s.tree[p] != nil {
		go f.drop()
		return nil, exists(name)
	}
	s.tree[p] = f
	return f, nil
}

// Replace makes a file that is to replace a disk, and that look-ups of the name
// by thread pid find until it is opened. It begins with the bytes of base, those
// of the file it replaces, or empty if that is nil.
func (s *Spool) Replace(folder, name string, pid uint32, base codec.Disk) (*File, error) {
	f, err := s.make(record{Folder: folder, Name: name, State: Writing, Replace: true, Base: s.current(folder, name)})
	if err != nil {
		return nil, err
	}
	f.base = base
	s.mu.Lock()
	defer s.mu.Unlock()
	c := claim{place{folder, name}, pid}
	if old := s.claims[c]; old != nil {
		go old.drop()
	}
	s.claims[c] = f
	time.AfterFunc(claimTime, func() { s.expire(c, f) })
	return f, nil
}

// expire drops a claim that nobody came for.
func (s *Spool) expire(c claim, f *File) {
	s.mu.Lock()
	mine := s.claims[c] == f
	if mine {
		delete(s.claims, c)
	}
	s.mu.Unlock()
	if mine {
		f.drop()
	}
}

// unclaim ends the claim on a file that is opened.
func (s *Spool) unclaim(f *File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.claims, func(_ claim, g *File) bool { return g == f })
}

// allowed reports why no file may have a name.
func (s *Spool) allowed(folder, name string) error {
	if Unfinished(name) || IsPiece(name) {
		return nil
	}
	if _, err := ParseName(s.cfg.Exts, folder, name); err != nil {
		return err
	}
	return s.taken(folder, name)
}

// taken refuses the short name of an image that exists in another format, and
// the name of a package of one that exists: who copies to a name that is not
// there does not mean to replace anything.
func (s *Spool) taken(folder, name string) error {
	t, err := ParseName(s.cfg.Exts, folder, name)
	if err != nil {
		return err
	}
	if t.Package != "" && s.cfg.Catalog.Has(t.Image) {
		return exists(fmt.Sprintf("image %q is there: remove it first (imagefs rm), or give the %s another name", t.Image, t.Package))
	}
	if folder != "" {
		return nil
	}
	d, ok := s.disk(t)
	if !ok || d.Imported() == t.Format {
		return nil
	}
	return exists(fmt.Sprintf("image %q has a disk 0 in another format: copy to images/%s/disk0.%s to replace it", t.Image, t.Image, t.Format))
}

// current is the key of the object that the disk of that name has now.
func (s *Spool) current(folder, name string) string {
	t, err := ParseName(s.cfg.Exts, folder, name)
	if err != nil || t.Package != "" {
		return ""
	}
	d, _ := s.disk(t)
	return d.Object.Key
}

// disk is the disk that is at a target now.
func (s *Spool) disk(t Target) (catalog.Disk, bool) {
	if !s.cfg.Catalog.Has(t.Image) {
		return catalog.Disk{}, false
	}
	ctx, cancel := context.WithTimeout(s.stop, time.Minute)
	defer cancel()
	img, err := s.cfg.Catalog.Lookup(ctx, t.Image)
	if err != nil {
		return catalog.Disk{}, false
	}
	return img.Disk(t.Number)
}

// make makes the folder of a file, with its record in it.
func (s *Spool) make(rec record) (*File, error) {
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return nil, fmt.Errorf("spool is closed: %w", fs.ErrClosed)
	}
	if _, free, err := s.Space(); err == nil && free < minFree {
		return nil, fmt.Errorf("spool %q has %d bytes free, at least %d are needed: %w", s.cfg.Dir, free, int64(minFree), syscall.ENOSPC)
	}
	f := &File{ID: strings.ToLower(rand.Text()), s: s, rec: rec, attr: Attr{Mode: 0o644}}
	f.dir = filepath.Join(s.dir, filesName, f.ID)
	err := os.Mkdir(f.dir, 0o700)
	if err == nil {
		err = f.rec.save(f.dir, false)
	}
	if err == nil {
		f.data, err = os.OpenFile(filepath.Join(f.dir, dataName), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	}
	if err != nil {
		os.RemoveAll(f.dir)
		return nil, fmt.Errorf("stage %q: %w", rec.Name, bare(err))
	}
	s.remember(f)
	return f, nil
}

// Space is the size of the spool's disk and what is free of it, in bytes.
func (s *Spool) Space() (size, free int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return 0, 0, err
	}
	return int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize, nil
}

func (s *Spool) remember(f *File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all[f] = true
}

func (s *Spool) forget(f *File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, f)
	maps.DeleteFunc(s.tree, func(_ place, g *File) bool { return g == f })
	maps.DeleteFunc(s.claims, func(_ claim, g *File) bool { return g == f })
}

// drop takes f out of what is shown.
func (s *Spool) drop(f *File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.tree, func(_ place, g *File) bool { return g == f })
}

// drop removes the file, at its last handle if there are any.
func (f *File) drop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stopQuiet()
	f.s.drop(f)
	f.removed, f.dirty = true, false
	f.rec.State = committed // nothing of it is wanted after a crash
	f.save()
	if f.handles == 0 {
		f.discard()
	}
}

// Lookup finds what thread pid sees under a name: the file that is being
// written there, or nil.
func (s *Spool) Lookup(folder, name string, pid uint32) *File {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.claims[claim{place{folder, name}, pid}]; f != nil {
		return f
	}
	return s.tree[place{folder, name}]
}

// shown reports whether f is found under a name.
func (s *Spool) shown(f *File) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.tree {
		if g == f {
			return true
		}
	}
	return false
}

// List returns the names shown in a folder, sorted.
func (s *Spool) List(folder string) (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range s.tree {
		if p.folder == folder {
			names = append(names, p.name)
		}
	}
	slices.Sort(names)
	return names
}

// Folders returns the images that only this spool knows of, sorted: drafts, and
// those that files lie in.
func (s *Spool) Folders() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := maps.Clone(s.drafts)
	for p := range s.tree {
		if p.folder != "" {
			found[p.folder] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// HasFolder reports whether Folders holds name.
func (s *Spool) HasFolder(name string) bool {
	_, found := slices.BinarySearch(s.Folders(), name)
	return found
}

// Status describes all files, sorted by name.
func (s *Spool) Status() []Status {
	s.mu.Lock()
	files := slices.Collect(maps.Keys(s.all))
	s.mu.Unlock()
	var out []Status
	for _, f := range files {
		if st := f.Status(); st.State != committed {
			out = append(out, st)
		}
	}
	slices.SortFunc(out, func(a, b Status) int {
		return strings.Compare(a.Folder+"/"+a.Name+"/"+a.Path, b.Folder+"/"+b.Name+"/"+b.Path)
	})
	return out
}

// Mkdir makes a draft: an image that others see with its first disk.
func (s *Spool) Mkdir(name string) error {
	if err := catalog.CheckName(name); err != nil {
		return fmt.Errorf("%w: %w", ErrName, err)
	}
	if s.HasFolder(name) || s.cfg.Catalog.Has(name) {
		return exists(name)
	}
	if err := os.Mkdir(filepath.Join(s.dir, draftsName, name), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return bare(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drafts[name] = true
	return nil
}

// Rmdir removes an empty draft.
func (s *Spool) Rmdir(name string) error {
	if len(s.List(name)) > 0 {
		return fmt.Errorf("%q: %w", name, syscall.ENOTEMPTY)
	}
	if s.cfg.Catalog.Has(name) {
		return fmt.Errorf("%q is an image: remove it with imagefs rm: %w", name, syscall.EPERM)
	}
	s.undraft(name)
	return nil
}

func (s *Spool) undraft(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.drafts[name] {
		delete(s.drafts, name)
		os.Remove(filepath.Join(s.dir, draftsName, name))
	}
}

// Unlink removes a staged file. Handles go on with it.
func (s *Spool) Unlink(folder, name string) error {
	s.mu.Lock()
	f := s.tree[place{folder, name}]
	s.mu.Unlock()
	if f == nil {
		return fmt.Errorf("%q: %w", name, fs.ErrNotExist)
	}
	if !f.io.TryLock() {
		return fmt.Errorf("%q is being stored: %w", name, ErrBusy)
	}
	defer f.io.Unlock()
	f.drop()
	return nil
}

// CommitQuiet commits the files of a folder that wait for a quiet period.
func (s *Spool) CommitQuiet(ctx context.Context, folder string) error {
	var errs []error
	for _, f := range s.files() {
		f.mu.Lock()
		due := f.quiet != nil && f.rec.Folder == folder
		f.mu.Unlock()
		if due {
			errs = append(errs, f.Commit(ctx))
		}
	}
	return errors.Join(errs...)
}

// busy reports whether a handle may write the file.
func (f *File) busy() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.writers > 0
}
