package stage

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"imagefs/remote"
)

// Open opens the spool in cfg.Dir and takes over what dead processes left
// there. Several processes may have a spool in one folder, each with files of
// its own.
func Open(cfg Config) (*Spool, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Report == nil {
		cfg.Report = func(string, string, error) {}
	}
	if cfg.Quiet <= 0 {
		cfg.Quiet = 2 * time.Second
	}
	s := &Spool{
		cfg: cfg, im: cfg.Importer,
		tree: make(map[place]*File), all: make(map[*File]bool), claims: make(map[claim]*File), drafts: make(map[string]bool),
		slots: make(chan struct{}, backCommits),
	}
	s.stop, s.end = context.WithCancel(context.Background())
	if err := s.open(); err != nil {
		s.end()
		return nil, fmt.Errorf("spool %q: %w", cfg.Dir, err)
	}
	return s, nil
}

func (s *Spool) open() error {
	if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return bare(err)
	}
	// One process at a time looks for the dead and shows that it lives.
	all, err := lockFile(filepath.Join(s.cfg.Dir, lockName), true)
	if err != nil {
		return err
	}
	defer all.Close()
	s.dir = filepath.Join(s.cfg.Dir, strings.ToLower(rand.Text()[:10]))
	for _, dir := range []string{s.dir, filepath.Join(s.dir, filesName), filepath.Join(s.dir, draftsName)} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return bare(err)
		}
	}
	if s.lock, err = lockFile(filepath.Join(s.dir, lockName), true); err != nil {
		return err
	}
	es, err := os.ReadDir(s.cfg.Dir)
	if err != nil {
		return bare(err)
	}
	for _, e := range es {
		dir := filepath.Join(s.cfg.Dir, e.Name())
		if !e.IsDir() || dir == s.dir {
			continue
		}
		if err := s.inherit(dir); err != nil {
			return fmt.Errorf("take over %q: %w", dir, err)
		}
	}
	return s.revive()
}

// lockFile holds the lock of a file until it is closed, or the process ends.
// Without wait, a lock that another process holds is EWOULDBLOCK.
func lockFile(name string, wait bool) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, bare(err)
	}
	how := unix.LOCK_EX
	if !wait {
		how |= unix.LOCK_NB
	}
	for {
		if err = unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// inherit moves what a dead process had to this one's folder.
func (s *Spool) inherit(dir string) error {
	lock, err := lockFile(filepath.Join(dir, lockName), false)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil // it lives
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	for _, sub := range []string{filesName, draftsName} {
		es, err := os.ReadDir(filepath.Join(dir, sub))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return bare(err)
		}
		for _, e := range es {
			to := filepath.Join(s.dir, sub, e.Name())
			if err := os.Rename(filepath.Join(dir, sub, e.Name()), to); err != nil && !errors.Is(err, fs.ErrExist) {
				return bare(err)
			}
		}
	}
	return os.RemoveAll(dir)
}

// revive takes up what was inherited.
func (s *Spool) revive() error {
	es, err := os.ReadDir(filepath.Join(s.dir, draftsName))
	if err != nil {
		return bare(err)
	}
	for _, e := range es {
		if s.cfg.Catalog.Has(e.Name()) {
			os.Remove(filepath.Join(s.dir, draftsName, e.Name()))
			continue
		}
		s.drafts[e.Name()] = true
	}
	if es, err = os.ReadDir(filepath.Join(s.dir, filesName)); err != nil {
		return bare(err)
	}
	var later []*File // when all are there: one may need another
	for _, e := range es {
		f, err := s.reviveFile(e.Name())
		if f != nil {
			later = append(later, f)
		}
		if err != nil {
			s.cfg.Log.Error("staged file is left as it is", "path", filepath.Join(s.dir, filesName, e.Name()), "err", err)
			s.cfg.Report("resume", e.Name(), err)
		}
	}
	for _, f := range later {
		s.later(f)
	}
	return nil
}

// reviveFile takes up one file, and returns it if there is more to do for it.
func (s *Spool) reviveFile(id string) (*File, error) {
	f := &File{ID: id, s: s, dir: filepath.Join(s.dir, filesName, id), attr: Attr{Mode: 0o644}}
	rec, err := load(f.dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && rec.State == committed && rec.Key == "" && len(rec.Stale) == 0 {
		return nil, os.RemoveAll(f.dir) // killed while it was made, or removed
	}
	if err != nil {
		return nil, err
	}
	if rec.Key != "" {
		rec.Stale, rec.Key = append(rec.Stale, rec.Key), ""
	}
	f.rec = rec
	f.data, err = os.OpenFile(filepath.Join(f.dir, dataName), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) && rec.State == Writing {
		return nil, os.RemoveAll(f.dir)
	}
	if err != nil {
		return nil, err
	}
	for _, old := range glob(f.dir, "object-*") {
		os.Remove(old)
	}
	s.remember(f)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.save()
	if f.removed = rec.State == committed; f.removed {
		return f, nil
	}
	name := rec.Name
	if rec.Replace && rec.State == Writing && !f.rec.refused() {
		name += refusedSuffix // nobody has its handle any more
	}
	s.move(f, rec.Folder, name)
	f.dirty = rec.State == Writing || rec.State == Refused
	f.waiting = rec.State == Writing && (rec.Error == errPiece.Error() || len(rec.Needs) > 0)
	if len(rec.Stale) > 0 || rec.State == Sealed || rec.State == Uploading {
		return f, nil
	}
	return nil, nil
}

func glob(dir, pattern string) []string {
	names, _ := filepath.Glob(filepath.Join(dir, pattern)) // the pattern is good
	return names
}

// later resumes f in the background: a sealed file is stored, and what a dead
// process may have left of an object is removed first.
func (s *Spool) later(f *File) { s.goWork(func(ctx context.Context) { s.retry(ctx, f) }) }

// background commits f in the background.
func (s *Spool) background(f *File) {
	s.goWork(func(ctx context.Context) {
		if !f.busy() { // else its writer's release starts the next quiet period
			_ = f.Commit(ctx) // reported where it fails
		}
	})
}

func (s *Spool) goWork(fn func(context.Context)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.work.Go(func() {
		select {
		case s.slots <- struct{}{}:
		case <-s.stop.Done():
			return
		}
		defer func() { <-s.slots }()
		fn(s.stop)
	})
}

// retry resumes f until it is stored or refused, or the spool ends.
func (s *Spool) retry(ctx context.Context, f *File) {
	for wait := time.Second; ; wait = min(2*wait, time.Minute) {
		if err := f.resume(ctx); err == nil || !errors.Is(err, remote.ErrUnavailable) {
			return
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

// resume takes up a file that was sealed, maybe by a dead process.
func (f *File) resume(ctx context.Context) error {
	f.io.Lock()
	defer f.io.Unlock()
	f.mu.Lock()
	rec := f.rec
	f.mu.Unlock()
	fail := func(err error) error {
		f.s.cfg.Report("resume", path.Join("images", rec.Folder, rec.Name), err)
		f.s.cfg.Log.Warn("staged file waits", "image", rec.Folder, "name", rec.Name, "err", err)
		return err
	}
	for _, key := range rec.Stale {
		named, err := f.s.named(ctx, rec, key)
		if named {
			f.drop() // the process died between the commit and its note
			return nil
		}
		// An object that is complete stays: should an entry name it after
		// all, it must not go. Without one it is garbage.
		if err == nil {
			err = f.s.im.up.AbortUploads(ctx, key)
		}
		if err != nil {
			return fail(fmt.Errorf("look at the unfinished upload of %q: %w", key, err))
		}
	}
	f.mu.Lock()
	f.rec.Stale = f.rec.Stale[len(rec.Stale):]
	f.save()
	removed := f.removed
	f.mu.Unlock()
	if removed {
		f.drop()
		return nil
	}
	if rec.State != Sealed && rec.State != Uploading {
		return nil
	}
	c, err := f.checked(ctx)
	var wait *WaitError
	if errors.As(err, &wait) {
		f.waits(err)
		return nil
	}
	if err != nil {
		return f.fail("resume", err)
	}
	return f.store(ctx, c)
}

// checked is the file as it was found good, by this process or now. io is held.
func (f *File) checked(ctx context.Context) (*Checked, error) {
	job, err := f.job()
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	c := f.good
	f.mu.Unlock()
	if c != nil && c.Target == job.Target && c.Size == job.Size {
		job.pieces = c.pieces
		c.Job = job
		return c, nil
	}
	if c, err = f.s.im.Check(ctx, job); err != nil {
		release(job, false)
	}
	return c, err
}

// named reports whether the catalog shows the object of a file under its name.
func (s *Spool) named(ctx context.Context, rec record, key string) (bool, error) {
	t, err := ParseName(s.cfg.Exts, rec.Folder, strings.TrimSuffix(rec.Name, refusedSuffix))
	if err != nil {
		return false, nil
	}
	img, err := s.cfg.Catalog.Lookup(ctx, t.Image)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	// Of a package any disk will do: they are named all at once.
	for _, d := range img.Disks {
		if d.Object.Key == key && (t.Package != "" || d.Number == t.Number) {
			return true, nil
		}
	}
	return false, nil
}

// Close commits what is complete, waits until all that is sealed is stored or
// ctx ends, and gives the folder up. What is not stored stays for the next.
func (s *Spool) Close(ctx context.Context) error {
	for _, f := range s.files() {
		f.mu.Lock()
		due := f.quiet != nil
		f.stopQuiet()
		f.mu.Unlock()
		if due {
			s.background(f)
		}
	}
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	done := make(chan struct{})
	go func() { s.work.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
	}
	s.end()
	<-done
	for _, f := range s.files() {
		f.mu.Lock()
		sent := f.sent
		f.sent = nil
		f.mu.Unlock()
		sent.abort()
		f.data.Close()
	}
	left := len(s.Status())
	if s.mu.Lock(); left == 0 && len(s.drafts) == 0 {
		if err := os.RemoveAll(s.dir); err != nil {
			s.cfg.Log.Warn("spool is left over", "path", s.dir, "err", err)
		}
	}
	s.mu.Unlock()
	s.lock.Close()
	if left == 0 {
		return nil
	}
	return context.Cause(ctx)
}

func (s *Spool) files() (files []*File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for f := range s.all {
		files = append(files, f)
	}
	return files
}
