package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"imagefs/codec"
)

// scratch is the folder of one import's temporary files, in the spool. It is
// made when it is first needed, and locked as long as its process lives: the
// next import removes what a killed one left.
type scratch struct {
	parent string
	dir    string
	lock   *os.File
}

func newScratch(root string) *scratch { return &scratch{parent: filepath.Join(root, "import")} }

// folder returns the folder.
func (s *scratch) folder() (string, error) {
	if s.dir != "" {
		return s.dir, nil
	}
	if err := s.make(); err != nil {
		return "", fmt.Errorf("make a folder for temporary files: %w: say --spool DIR to have it elsewhere", err)
	}
	return s.dir, nil
}

func (s *scratch) make() error {
	if err := os.MkdirAll(s.parent, 0o700); err != nil {
		return err
	}
	// One process at a time makes and removes folders here.
	all, err := lockDir(s.parent, 0)
	if err != nil {
		return err
	}
	defer all.Close()
	s.sweep()
	dir, err := os.MkdirTemp(s.parent, "*")
	if err != nil {
		return err
	}
	if s.lock, err = lockDir(dir, unix.LOCK_NB); err != nil {
		os.Remove(dir)
		return err
	}
	s.dir = dir
	return nil
}

// sweep removes the folders of dead processes.
func (s *scratch) sweep() {
	list, err := os.ReadDir(s.parent)
	if err != nil {
		return
	}
	for _, e := range list {
		dir := filepath.Join(s.parent, e.Name())
		if f, err := lockDir(dir, unix.LOCK_NB); err == nil {
			os.RemoveAll(dir)
			f.Close()
		}
	}
}

// lockDir locks a folder as long as the returned file is open.
func lockDir(dir string, how int) (*os.File, error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|how)
		if err == nil {
			return f, nil
		}
		if err != unix.EINTR {
			f.Close()
			return nil, fmt.Errorf("lock %q: %w", dir, err)
		}
	}
}

// file makes a temporary file.
func (s *scratch) file() (*os.File, error) {
	dir, err := s.folder()
	if err != nil {
		return nil, err
	}
	return os.CreateTemp(dir, "source-*")
}

// explain says what to do about an error of the disk that the folder lies on.
func (s *scratch) explain(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: the spool %q is full: say --spool DIR to have it elsewhere", err, s.parent)
	}
	return err
}

func (s *scratch) remove() {
	if s.dir == "" {
		return
	}
	os.RemoveAll(s.dir)
	s.lock.Close()
}

// sparseWriter writes a new file in order and leaves zeros out.
type sparseWriter struct {
	file  *os.File
	off   int64
	wrote func(off int64)
}

// sparseBlock is the unit of holes, aligned.
const sparseBlock = 64 << 10

func (w *sparseWriter) Write(p []byte) (int, error) {
	n, err := writeSparse(w.file, p, w.off)
	w.off += int64(n)
	w.wrote(w.off)
	return n, err
}

// writeSparse writes p to a place of a file that holds nothing yet.
func writeSparse(f *os.File, p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		at := off + int64(done)
		b := p[done:min(int64(len(p)), int64(done)+sparseBlock-at%sparseBlock)]
		if !codec.Empty(b) {
			if n, err := f.WriteAt(b, at); err != nil {
				return done + n, err
			}
		}
		done += len(b)
	}
	return done, nil
}
