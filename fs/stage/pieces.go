package stage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"

	"imagefs/codec"
	"imagefs/codec/vmdk"
)

// A VMDK may be a descriptor, a small text, and files beside it that it names.
// They are copied in one after the other, in any order: each waits until all are
// there, and the close of the last one imports them together, as one raw disk.
// Names in a descriptor are compared with those of files that were copied into
// the same folder, and lead nowhere else.

// piecePattern is how programs name the files beside a descriptor.
var piecePattern = regexp.MustCompile(`(?i)^.+-(flat|[sf][0-9]{3,})\.vmdk$`)

// IsPiece reports whether a name may be that of a file beside a descriptor.
func IsPiece(name string) bool {
	return piecePattern.MatchString(name) && !strings.HasPrefix(name, ".")
}

// WaitError says which files a descriptor waits for. It is an [ErrRefused]
// where nobody will bring them.
type WaitError struct{ Names []string }

func (e *WaitError) Error() string {
	const most = 8
	names := e.Names
	if len(names) > most {
		names = append(slices.Clone(names[:most]), fmt.Sprintf("and %d more", len(e.Names)-most))
	}
	return fmt.Sprintf("this is only the descriptor of a VMDK: it needs %q beside it", names)
}

// Is makes the error one of [ErrRefused].
func (e *WaitError) Is(target error) bool { return target == ErrRefused }

// PieceFile is a file beside a descriptor.
type PieceFile struct {
	File *os.File
	Size int64
}

// isDescriptor reports whether the file promises to be a VMDK and is the
// descriptor of one.
func (c *Checked) isDescriptor(ctx context.Context, src *local) (bool, error) {
	if c.Declared || c.Job.Format != "vmdk" && c.Job.Format != "" {
		return false, nil
	}
	head, tail, err := codec.Ends(ctx, src)
	if err != nil {
		return false, err
	}
	return slices.Equal(codec.Signatures(head, tail), []string{codec.VMDKDescriptor}), nil
}

// checkPieces checks a disk that is made of several files. What is stored of it
// is the disk.
func (c *Checked) checkPieces(ctx context.Context, src *local) error {
	p, err := vmdk.ParsePieces(ctx, src)
	if err != nil {
		return err
	}
	files := make(map[string]codec.Source)
	var missing []string
	for _, name := range p.Names() {
		if c.Piece != nil {
			if f, ok := c.Piece(name); ok {
				files[name] = &local{f: f.File, size: f.Size}
				continue
			}
		}
		missing = append(missing, name)
	}
	if len(missing) > 0 {
		return &WaitError{missing}
	}
	raw, err := c.im.byName("raw")
	if err != nil {
		return err
	}
	d, err := p.Open(ctx, files)
	if v, ok := d.(verifier); ok && err == nil {
		err = v.Verify(ctx)
	}
	if err != nil {
		return err
	}
	c.disks = []*member{{number: c.Number, raw: d, format: raw, disk: d}}
	return nil
}

// piece finds a file that was copied in beside f, for as long as unlock is not
// called: nobody may write to it meanwhile.
func (f *File) piece(name string, held *[]*File) (PieceFile, bool) {
	f.mu.Lock()
	folder := f.rec.Folder
	f.mu.Unlock()
	g := f.s.Lookup(folder, name, 0)
	if g == nil || g == f || slices.Contains(*held, g) || !g.io.TryLock() {
		return PieceFile{}, false
	}
	g.mu.Lock()
	complete := g.waiting
	g.mu.Unlock()
	a, err := g.Attr()
	if err != nil || !complete || f.s.cfg.WriteBack && g.data.Sync() != nil {
		g.io.Unlock()
		return PieceFile{}, false
	}
	*held = append(*held, g)
	return PieceFile{g.data, a.Size}, true
}

// release lets the files beside a descriptor go; with used set they are part of
// an image now.
func release(j *Job, used bool) {
	for _, g := range j.pieces {
		if used {
			g.drop()
		}
		g.io.Unlock()
	}
	j.pieces = nil
}

// waits notes that the file waits for others, which is no refusal. The
// operator is told of a descriptor, once. io is held.
func (f *File) waits(why error) {
	var wait *WaitError
	var names []string
	if errors.As(why, &wait) {
		names = wait.Names
	}
	f.mu.Lock()
	told := len(f.rec.Needs) > 0 || names == nil
	f.rec.State, f.rec.Error, f.rec.Needs = Writing, why.Error(), names
	f.dirty, f.waiting, f.verdict = true, true, nil
	f.save()
	name := path.Join("images", f.rec.Folder, f.rec.Name)
	f.mu.Unlock()
	if !told {
		f.s.cfg.Report("import", name, why)
	}
}

// whole finds the descriptor that waits for f, if there is one.
func (f *File) whole() *File {
	f.mu.Lock()
	folder, name := f.rec.Folder, f.rec.Name
	f.mu.Unlock()
	for _, other := range f.s.List(folder) {
		g := f.s.Lookup(folder, other, 0)
		if g == nil || g == f {
			continue
		}
		g.mu.Lock()
		waits := slices.Contains(g.rec.Needs, name)
		g.mu.Unlock()
		if waits {
			return g
		}
	}
	return nil
}
