package fs

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"imagefs/fs/stage"
)

// status is what .imagefs shows: files for cat, made when they are opened.
type status struct {
	*Problems
	files []statusFile
}

// Problems are the failures that .imagefs/errors shows, the newest of them. The
// zero value has none; it is safe for concurrent use.
type Problems struct {
	mu     sync.Mutex
	errors []problem // guarded by mu; the newest maxErrors
}

type statusFile struct {
	name   string
	render func() []byte
}

// problem is one failure as .imagefs/errors shows it, counted while it repeats.
type problem struct {
	at       time.Time
	op, path string
	err      string
	times    int
}

const maxErrors = 200

// Record keeps a failure of op at path.
func (s *Problems) Record(op, path string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := problem{time.Now(), op, path, err.Error(), 1}
	for i := len(s.errors) - 1; i >= 0; i-- {
		if q := &s.errors[i]; q.op == p.op && q.path == p.path && q.err == p.err {
			q.at, q.times = p.at, q.times+1
			return
		}
	}
	if len(s.errors) == maxErrors {
		s.errors = s.errors[1:]
	}
	s.errors = append(s.errors, p)
}

func (s *Problems) render() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	for _, p := range s.errors {
		fmt.Fprintf(&b, "%s %s %s: %s", p.at.UTC().Format(time.RFC3339), p.op, p.path, p.err)
		if p.times > 1 {
			fmt.Fprintf(&b, " (%d times)", p.times)
		}
		b.WriteByte('\n')
	}
	return []byte(b.String())
}

// renderUploads tells of the files that are being copied in, a line each.
func renderUploads(s *stage.Spool) []byte {
	if s == nil {
		return nil
	}
	var b strings.Builder
	for _, u := range s.Status() {
		fmt.Fprintf(&b, "%s %q %d bytes", u.State, strings.TrimPrefix(u.Folder+"/"+u.Name, "/"), u.Size)
		if u.Total > 0 {
			fmt.Fprintf(&b, ", %d of %d stored", u.Sent, u.Total)
		}
		if u.Error != "" {
			fmt.Fprintf(&b, ": %s", u.Error)
		}
		fmt.Fprintf(&b, " (%s)\n", u.Path)
	}
	return []byte(b.String())
}

// renderJSON is v for people and scripts.
func renderJSON(v any) []byte {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return []byte(err.Error() + "\n")
	}
	return append(b, '\n')
}

func (s *status) folder(t *tree) *dir {
	start := time.Now()
	d := t.folder(".imagefs", func(_ context.Context, name string) (child, error) {
		for _, f := range s.files {
			if f.name == name {
				n := &live{render: f.render, fixed: fixed{attr: t.fixed(syscall.S_IFREG, derive("status", name), 0, start), keep: nameTimeout}}
				return n.child(n), nil
			}
		}
		return child{}, errNoEntry
	}, func(context.Context) ([]fuse.DirEntry, error) {
		var es []fuse.DirEntry
		for _, f := range s.files {
			es = append(es, entry(f.name, syscall.S_IFREG, derive("status", f.name)))
		}
		return es, nil
	})
	return d
}

// live is a file whose bytes are made anew at each open. Its size is not known
// before, so stat says 0 and reads bypass the kernel's cache.
type live struct {
	fs.Inode
	readOnly
	render func() []byte
	fixed
}

// Open implements [fs.NodeOpener].
func (n *live) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, syscall.EROFS
	}
	return liveHandle(n.render()), fuse.FOPEN_DIRECT_IO, 0
}

type liveHandle []byte

// Read implements [fs.FileReader].
func (h liveHandle) Read(_ context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if off >= int64(len(h)) {
		return fuse.ReadResultData(nil), 0
	}
	return fuse.ReadResultData(dest[:copy(dest, h[off:])]), 0
}
