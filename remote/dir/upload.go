package dir

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"

	"imagefs/remote"
)

const (
	uploadPrefix = reserved + "upload-"
	tokenSize    = 26 // of rand.Text

	// zeroStep is how many zeros are left a hole: a block of most file systems.
	zeroStep = 4096
	partStep = 256 << 10 // how much of a part is held in memory
)

var (
	_ remote.Uploader = (*Store)(nil)

	zeros [partStep]byte
)

// upload is an upload under way: a file beside its key whose name tells the
// key, so that any process can clear it away.
type upload struct {
	s         *Store
	key, temp string
	f         *os.File // closed once completed or aborted

	mu    sync.Mutex     // guards the fields below
	begun map[int]bool   // parts whose place may hold bytes
	sizes map[int]int64  // of the parts that were stored
	done  *remote.Object // nil until completed
}

// uploadName returns the name of the file of an upload. It fits into 255
// bytes, since segments of keys have at most 200.
func uploadName(token, base string) string { return uploadPrefix + token + "-" + base }

// parseUploadName is the reverse of uploadName.
func parseUploadName(name string) (token, base string, ok bool) {
	rest, ok := strings.CutPrefix(name, uploadPrefix)
	if !ok || len(rest) < tokenSize+2 || rest[tokenSize] != '-' {
		return "", "", false
	}
	return rest[:tokenSize], rest[tokenSize+1:], true
}

// Upload begins an upload. It takes a file descriptor until it is completed or
// aborted.
func (s *Store) Upload(ctx context.Context, key string) (remote.Upload, error) {
	if err := check(ctx, key); err != nil {
		return nil, fmt.Errorf("upload: %w", err)
	}
	dir, base := path.Split(key)
	dir = path.Clean(dir)
	if err := s.mkdir(dir); err != nil {
		return nil, fmt.Errorf("upload %q: %w", key, err)
	}
	temp := path.Join(dir, uploadName(rand.Text(), base))
	f, err := s.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, fmt.Errorf("upload %q: %w", key, reason(err))
	}
	return &upload{s: s, key: key, temp: temp, f: f, begun: make(map[int]bool), sizes: make(map[int]int64)}, nil
}

// AbortUploads removes the files of uploads of key.
func (s *Store) AbortUploads(ctx context.Context, key string) error {
	if err := check(ctx, key); err != nil {
		return fmt.Errorf("abort uploads: %w", err)
	}
	if err := s.abortUploads(key); err != nil {
		return fmt.Errorf("abort uploads of %q: %w", key, err)
	}
	return nil
}

func (s *Store) abortUploads(key string) error {
	dir, base := path.Split(key)
	f, err := s.root.Open(path.Clean(dir))
	if err == nil {
		defer f.Close()
		var names []string
		names, err = f.Readdirnames(-1)
		for _, name := range names {
			if _, of, ok := parseUploadName(name); !ok || of != base {
				continue
			}
			if rerr := s.root.Remove(path.Join(dir, name)); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
				return reason(rerr)
			}
		}
	}
	if err = reason(err); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Uploads yields the unfinished uploads of keys that begin with prefix; their
// time is that of the last write.
func (s *Store) Uploads(ctx context.Context, prefix string) iter.Seq2[remote.PendingUpload, error] {
	return func(yield func(remote.PendingUpload, error) bool) {
		pending, err := s.pending(ctx, prefix)
		if err != nil {
			yield(remote.PendingUpload{}, fmt.Errorf("list uploads of %q: %w", prefix, err))
			return
		}
		for _, u := range pending {
			if !yield(u, nil) {
				return
			}
		}
	}
}

func (s *Store) pending(ctx context.Context, prefix string) ([]remote.PendingUpload, error) {
	if prefix != "" {
		if err := remote.CheckKey(strings.TrimSuffix(prefix, "/")); err != nil {
			return nil, err
		}
	}
	dir, _ := path.Split(prefix)
	var pending []remote.PendingUpload
	err := fs.WalkDir(s.root.FS(), path.Clean(dir), func(name string, e fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, fs.ErrNotExist): // gone since its name was read
			return nil
		case err != nil || e.IsDir():
			return err
		}
		token, base, ok := parseUploadName(e.Name())
		key := path.Join(path.Dir(name), base)
		if !ok || !strings.HasPrefix(key, prefix) || remote.CheckKey(key) != nil {
			return nil
		}
		fi, err := e.Info()
		if err == nil && fi.Mode().IsRegular() {
			pending = append(pending, remote.PendingUpload{Key: key, ID: token, Started: fi.ModTime()})
		}
		return nil // without a description it is gone
	})
	if err != nil {
		return nil, reason(err)
	}
	slices.SortFunc(pending, func(a, b remote.PendingUpload) int {
		return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.ID, b.ID))
	})
	return pending, nil
}

// Part writes a part to its place. Blocks of zeros stay holes.
func (u *upload) Part(ctx context.Context, number int, r *io.SectionReader) error {
	if err := remote.CheckPart(number, r.Size()); err != nil {
		return fmt.Errorf("upload %q: %w", u.key, err)
	}
	if err := u.part(ctx, number, r); err != nil {
		return fmt.Errorf("upload %q: part %d: %w", u.key, number, err)
	}
	return nil
}

func (u *upload) part(ctx context.Context, number int, r *io.SectionReader) error {
	u.mu.Lock()
	again := u.begun[number]
	u.begun[number] = true
	delete(u.sizes, number)
	u.mu.Unlock()
	off := remote.PartOffset(number)
	buf := make([]byte, min(partStep, r.Size()))
	for at := int64(0); at < r.Size(); at += int64(len(buf)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		buf = buf[:min(int64(len(buf)), r.Size()-at)]
		if n, err := r.ReadAt(buf, at); n < len(buf) {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("%d of %d bytes: %w", at+int64(n), r.Size(), err)
		}
		if err := u.write(buf, off+at, again); err != nil {
			return gone(err)
		}
	}
	if err := u.linked(); err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.sizes[number] = r.Size()
	return nil
}

// write writes b at off: all of it, or the runs between zeros where the place
// is a hole still.
func (u *upload) write(b []byte, off int64, all bool) error {
	for len(b) > 0 {
		n := len(b)
		if !all {
			n = run(b)
			if n == 0 {
				n = min(zeroStep, len(b))
				b, off = b[n:], off+int64(n)
				continue
			}
		}
		if _, err := u.f.WriteAt(b[:n], off); err != nil {
			return err
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

// run returns how many bytes of b come before a block of zeros.
func run(b []byte) int {
	n := 0
	for n < len(b) {
		block := b[n:min(n+zeroStep, len(b))]
		if bytes.Equal(block, zeros[:len(block)]) {
			break
		}
		n += len(block)
	}
	return n
}

// linked returns fs.ErrNotExist if the upload was aborted, by whomever.
func (u *upload) linked() error {
	fi, err := u.f.Stat()
	if err != nil {
		return gone(err)
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok && st.Nlink == 0 {
		return fs.ErrNotExist
	}
	return nil
}

// gone gives the closed file of an upload the meaning it has to callers.
func gone(err error) error {
	if errors.Is(err, fs.ErrClosed) {
		return fs.ErrNotExist
	}
	return reason(err)
}

// Complete syncs the file and gives it the name of the key.
func (u *upload) Complete(ctx context.Context) (remote.Object, error) {
	o, err := u.complete(ctx)
	if err != nil {
		return remote.Object{}, fmt.Errorf("complete upload %q: %w", u.key, err)
	}
	return o, nil
}

func (u *upload) complete(ctx context.Context) (remote.Object, error) {
	if err := ctx.Err(); err != nil {
		return remote.Object{}, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.done == nil {
		o, err := u.publish(ctx)
		if err != nil {
			return remote.Object{}, err
		}
		u.done = &o
		u.f.Close()
	}
	return *u.done, u.s.sync(path.Dir(u.key))
}

// publish is the visible step. The caller holds u.mu.
func (u *upload) publish(ctx context.Context) (remote.Object, error) {
	if err := u.linked(); err != nil {
		return remote.Object{}, err
	}
	total, err := remote.CheckParts(u.sizes)
	if err != nil {
		return remote.Object{}, err
	}
	// The last part may be zeros, or shorter than one it replaced.
	if err := u.f.Truncate(total); err != nil {
		return remote.Object{}, gone(err)
	}
	fi, err := u.s.seal(u.f, u.temp)
	if err != nil {
		return remote.Object{}, gone(err)
	}
	if err := u.s.publish(ctx, u.temp, u.key, remote.Cond{Absent: true}); err != nil {
		return remote.Object{}, err
	}
	return object(u.key, fi), nil
}

// Abort removes the file. Parts being written fail.
func (u *upload) Abort(context.Context) error {
	u.f.Close()
	if err := u.s.root.Remove(u.temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("abort upload %q: %w", u.key, reason(err))
	}
	return nil
}
