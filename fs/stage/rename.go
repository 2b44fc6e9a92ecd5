package stage

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"strings"

	"imagefs/remote/catalog"
)

// Rename moves a staged file, and commits it when it thereby gets its final
// name and nobody writes it any more. The error is the verdict: the file then
// keeps its old name.
func (s *Spool) Rename(ctx context.Context, folder, name, toFolder, toName string) error {
	if err := s.allowed(toFolder, toName); err != nil {
		return err
	}
	s.mu.Lock()
	f, other := s.tree[place{folder, name}], s.tree[place{toFolder, toName}]
	s.mu.Unlock()
	if f == nil {
		return fmt.Errorf("%q: %w", name, fs.ErrNotExist)
	}
	if other == f {
		return nil
	}
	if other != nil {
		if other.busy() {
			return ErrBusy
		}
		s.drop(other) // out of the way, and back if f does not take its place
	}
	due, err := f.rename(toFolder, toName, s.current(toFolder, toName))
	if err == nil && due {
		err = f.Commit(ctx)
	}
	if err != nil {
		f.back(folder, name)
	}
	switch {
	case other == nil:
	case err != nil:
		other.back(toFolder, toName)
	default:
		other.io.Lock() // a commit under way ends first
		defer other.io.Unlock()
		other.drop()
	}
	return err
}

// back shows the file under a name that it had.
func (f *File) back(folder, name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.s.move(f, folder, name)
	f.save()
}

// rename gives the file another name and reports whether it is to be
// committed under it now.
func (f *File) rename(folder, name, base string) (due bool, err error) {
	f.io.RLock()
	defer f.io.RUnlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rec.Base, f.rec.Replace = base, base != ""
	if f.rec.State == Refused {
		f.rec.State, f.dirty = Writing, true
	}
	f.s.move(f, folder, name)
	if err := f.rec.save(f.dir, false); err != nil {
		return false, fmt.Errorf("staged file: %w", bare(err))
	}
	return f.dirty && f.writers == 0 && !Unfinished(name), nil
}

// move shows f under another name. f.mu is held; the caller saves the record.
func (s *Spool) move(f *File, folder, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.tree, func(_ place, g *File) bool { return g == f })
	for n := 2; s.tree[place{folder, name}] != nil; n++ {
		name = fmt.Sprintf("%s.%d%s", strings.TrimSuffix(name, refusedSuffix), n, refusedSuffix)
	}
	f.rec.Folder, f.rec.Name = folder, name
	s.tree[place{folder, name}] = f
}

// RenameFolder renames an image: a draft here, or one of the catalog, with the
// files that are staged in it.
func (s *Spool) RenameFolder(ctx context.Context, from, to string) error {
	if err := catalog.CheckName(to); err != nil {
		return fmt.Errorf("%w: %w", ErrName, err)
	}
	if s.cfg.Catalog.Has(to) || s.HasFolder(to) && !s.emptyDraft(to) {
		return exists(to)
	}
	s.undraft(to)
	if s.cfg.Catalog.Has(from) {
		if err := s.cfg.Catalog.Rename(ctx, from, to); err != nil {
			return err
		}
	} else if err := s.Mkdir(to); err != nil {
		return err
	}
	s.undraft(from)
	s.mu.Lock()
	var moved []*File
	for p, f := range s.tree {
		if p.folder == from {
			moved = append(moved, f)
		}
	}
	s.mu.Unlock()
	for _, f := range moved {
		f.mu.Lock()
		s.move(f, to, f.rec.Name)
		err := f.rec.save(f.dir, false)
		f.mu.Unlock()
		if err != nil {
			return bare(err)
		}
	}
	return nil
}

func (s *Spool) emptyDraft(name string) bool {
	s.mu.Lock()
	draft := s.drafts[name]
	s.mu.Unlock()
	return draft && len(s.List(name)) == 0
}
