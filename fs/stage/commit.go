package stage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"time"

	"imagefs/codec"
	"imagefs/remote/catalog"
)

// Reported is an error that Config.Report was told of already.
type Reported struct{ error }

// Unwrap returns the error itself.
func (r *Reported) Unwrap() error { return r.error }

// Commit makes the file a disk of its image, and returns when the store has it
// (or, in write-back mode, when the spool has it durably). Without a change
// since the last time it does nothing. An error in the content wraps
// [ErrRefused], a lost race is catalog.ErrConflict; the bytes stay in the spool.
//
// The commit does not end with ctx: whoever waits may be interrupted, and the
// file is then still stored or refused as a whole.
//
// A file that is only a piece of a disk waits, which is no error, and so does a
// descriptor until all its pieces are there; see [IsPiece].
func (f *File) Commit(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	if err := f.commit(ctx); !errors.Is(err, errPiece) {
		return err
	}
	if g := f.whole(); g != nil {
		return g.commit(ctx)
	}
	return nil
}

// errPiece says that a file is a piece of another's disk.
var errPiece = errors.New("a piece of a VMDK: its descriptor is still to be copied beside it")

func (f *File) commit(ctx context.Context) error {
	f.io.Lock()
	defer f.io.Unlock()
	f.starting.Wait()
	f.mu.Lock()
	if !f.dirty || f.removed {
		defer f.mu.Unlock()
		return f.verdict // of whoever was faster
	}
	f.stopQuiet()
	f.dirty, f.verdict = false, nil
	f.mu.Unlock()
	f.mu.Lock()
	piece := IsPiece(f.rec.Name)
	f.mu.Unlock()
	job, err := f.job()
	if err == nil {
		var c *Checked
		if c, err = f.s.im.Check(ctx, job); err == nil {
			return f.seal(ctx, c)
		}
		release(job, false)
	}
	var wait *WaitError
	switch {
	case errors.As(err, &wait):
		f.waits(err)
		return nil
	case piece && (errors.Is(err, ErrRefused) || errors.Is(err, ErrName)):
		f.waits(errPiece)
		return errPiece
	}
	return f.fail("import", err)
}

// job describes the file as it is to be imported.
func (f *File) job() (*Job, error) {
	a, err := f.Attr()
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	t, err := ParseName(f.s.cfg.Exts, f.rec.Folder, f.rec.Name)
	if err != nil {
		return nil, err
	}
	j := &Job{
		Target: t, Base: f.rec.Base, Modified: a.Modified, File: f.data, Size: a.Size, Scratch: f.dir,
		Starting: f.uploading, Progress: f.progress, sent: f.sent,
	}
	j.Piece = func(name string) (PieceFile, bool) { return f.piece(name, &j.pieces) }
	return j, nil
}

// seal notes that the file is complete and good, and stores it.
func (f *File) seal(ctx context.Context, c *Checked) error {
	back := f.s.cfg.WriteBack
	if back {
		if err := f.data.Sync(); err != nil {
			release(c.Job, false)
			return fmt.Errorf("staged file: %w", bare(err))
		}
	}
	f.mu.Lock()
	f.rec.State, f.rec.Error = Sealed, ""
	f.done, f.total = 0, c.Size
	err := f.rec.save(f.dir, back)
	f.good = c
	f.mu.Unlock()
	if err != nil {
		release(c.Job, false)
		return fmt.Errorf("staged file: %w", bare(err))
	}
	if back {
		f.s.later(f)
		return nil
	}
	return f.store(ctx, c)
}

// store uploads and commits what was checked. io is held.
func (f *File) store(ctx context.Context, c *Checked) error {
	img, err := c.Import(ctx)
	f.mu.Lock()
	f.sent, f.tried = nil, false
	if err != nil && len(c.pieces) > 0 {
		f.good = nil // whoever tries again looks at the pieces anew
	}
	f.mu.Unlock()
	release(c.Job, err == nil)
	if err != nil {
		return f.fail("import", err)
	}
	f.publish(c, img)
	return nil
}

// uploading notes the object that the store may have from now on.
func (f *File) uploading(key string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.rec.Key != "" {
		f.rec.Stale = append(f.rec.Stale, f.rec.Key)
	}
	f.rec.Key = key
	if f.rec.State == Sealed {
		f.rec.State = Uploading
	}
	return f.rec.save(f.dir, f.s.cfg.WriteBack)
}

func (f *File) progress(sent, total int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.done, f.total = max(f.done, sent), total
}

// publish takes the file out of the tree: the catalog shows the disk now.
func (f *File) publish(c *Checked, img *catalog.Image) {
	f.mu.Lock()
	f.rec.State = committed
	if d, ok := img.Disk(c.Number); ok && c.Package == "" {
		f.rec.Base = d.Object.Key // should it be written again
	}
	stale := unnamed(f.rec.Stale, img)
	f.rec.Key, f.rec.Stale = "", stale
	f.save()
	f.s.drop(f)
	f.gone, f.tidying = true, len(stale) > 0
	if f.handles == 0 && !f.tidying {
		f.discard()
	}
	f.mu.Unlock()
	for _, note := range c.Notes() {
		f.s.cfg.Log.Info("note on an import", "image", c.Image, "note", note)
	}
	f.s.cfg.Log.Info("imported", "image", c.Image, "disk", c.Number, "disks", len(c.disks), "format", c.Format(), "bytes", c.Size)
	f.s.undraft(c.Image)
	if len(stale) > 0 {
		f.s.goWork(func(ctx context.Context) { f.tidy(ctx, stale) })
	}
}

// unnamed are the keys that are not those of an image's objects.
func unnamed(keys []string, img *catalog.Image) (left []string) {
	for _, key := range keys {
		named := slices.ContainsFunc(img.Disks, func(d catalog.Disk) bool {
			return d.Object.Key == key || d.Index != nil && d.Index.Key == key
		})
		if !named {
			left = append(left, key)
		}
	}
	return left
}

// tidy ends what earlier attempts may have left in the store. What it cannot
// end is for the next process, or the collector of garbage.
func (f *File) tidy(ctx context.Context, stale []string) {
	for _, key := range stale {
		if err := f.s.im.up.AbortUploads(ctx, key); err != nil {
			f.s.cfg.Log.Info("an unfinished upload is left", "key", key, "err", err)
			return
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rec.Stale = slices.DeleteFunc(f.rec.Stale, func(key string) bool { return slices.Contains(stale, key) })
	f.tidying = false
	if !f.gone || f.closed {
		return // it is written again
	}
	f.save()
	if f.handles == 0 {
		f.discard()
	}
}

// fail notes why the file was not taken. What is wrong with the file itself is
// a refusal; what the store could not do may be tried again.
func (f *File) fail(op string, err error) error {
	f.mu.Lock()
	sent := f.sent
	f.sent, f.tried = nil, false
	f.rec.Error = err.Error()
	name := path.Join("images", f.rec.Folder, f.rec.Name)
	f.mu.Unlock()
	sent.abort()
	f.s.cfg.Report(op, name, err)
	f.mu.Lock()
	defer f.mu.Unlock()
	if refusal(err) {
		f.rec.State = Refused
		lost := errors.Is(err, catalog.ErrConflict) || errors.Is(err, fs.ErrExist)
		if hidden := f.rec.Replace || lost; hidden && !f.gone && !f.rec.refused() {
			f.s.move(f, f.rec.Folder, f.rec.Name+refusedSuffix)
		}
	} else {
		f.dirty = true // the next close tries again
	}
	if errors.Is(err, catalog.ErrConflict) {
		f.s.goWork(func(ctx context.Context) {
			_, _ = f.s.cfg.Catalog.Refresh(ctx) // shows who was faster; the next one does too
		})
	}
	f.save()
	f.verdict = &Reported{err}
	return f.verdict
}

// save keeps the record as far as the disk allows. mu is held.
func (f *File) save() {
	if err := f.rec.save(f.dir, false); err != nil {
		f.s.cfg.Log.Warn("staged file", "path", f.dir, "err", err)
	}
}

// refusal reports whether err is about the file, and not about the store.
func refusal(err error) bool {
	for _, e := range []error{ErrRefused, ErrName, catalog.ErrConflict, fs.ErrExist, codec.ErrCorrupt, codec.ErrUnsupported} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// rewrite makes a file that was sealed, refused or committed one that is
// written again. mu is held.
func (f *File) rewrite() error {
	if f.gone {
		f.gone = false
		f.rec.Replace = true
		f.s.remember(f)
	}
	f.good, f.waiting = nil, false
	f.rec.State, f.rec.Error, f.rec.Needs = Writing, "", nil
	if err := f.rec.save(f.dir, false); err != nil {
		return fmt.Errorf("staged file: %w", bare(err))
	}
	return nil
}

// startStream begins to send parts behind the writer, once: when the content
// is, by its first bytes, what the name promises. Raw disks are encoded before
// they are stored, packages taken apart: they wait.
func (f *File) startStream() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.tried {
		return
	}
	f.tried = true
	t, ok := guess(f.s.cfg.Exts, f.rec.Folder, f.rec.Name)
	if !ok || IsPiece(f.rec.Name) || t.Format == "raw" || t.Package != "" {
		return
	}
	f.starting.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		head := make([]byte, codec.HeadLen)
		if _, err := f.data.ReadAt(head, 0); err != nil {
			return
		}
		if names := codec.Signatures(head, nil); len(names) != 1 || names[0] != t.Format {
			return
		}
		key := newKey(t.Image, t.Number, t.Format)
		err := f.uploading(key)
		if err == nil {
			var s *stream
			if s, err = f.s.im.begin(ctx, f.data, key); err == nil {
				f.mu.Lock()
				f.sent = s
				end := f.end
				f.mu.Unlock()
				s.follow()
				s.advance(end)
			}
		}
		if err != nil {
			f.s.cfg.Log.Info("parts are not sent ahead", "key", key, "err", err)
		}
	})
}
