package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"imagefs/cache"
	"imagefs/codec"
	"imagefs/remote"
	"imagefs/remote/catalog"
)

// What an operator does about an index that is missing, and one that is no good.
const (
	makeIndex   = "imagefs index STORE IMAGE"
	remakeIndex = "imagefs index --again STORE IMAGE"
)

// streams are those of a disk, read of its index when a view first wants them.
type streams struct {
	codec.Disk // behind all caches, what views lay out
	stored     codec.Disk
	store      remote.Store
	index      *catalog.Index // nil if there is none

	mu  sync.Mutex
	s   *codec.Streams // guarded by mu; nil until they are read
	err error          // guarded by mu; why there are none, for ever
}

var _ codec.Streamer = (*streams)(nil)

// takes is nil if v shows the disk when its index is good. It does no I/O.
func (s *streams) takes(v codec.Reframing) error {
	if err := v.Takes(codec.EncodingOf(s.stored)); err != nil {
		return err
	}
	if s.index == nil {
		return codec.NotPossiblef("no index yet: %s", makeIndex)
	}
	return nil
}

// Streams implements [codec.Streamer]. An index is read whole, once.
func (s *streams) Streams(ctx context.Context) (*codec.Streams, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.s != nil || s.err != nil {
		return s.s, s.err
	}
	if encoding, _ := codec.EncodingOf(s.stored); encoding == "" {
		return nil, codec.NotPossiblef("not stored compressed in blocks of its own")
	}
	if s.index == nil {
		return nil, codec.NotPossiblef("no index yet: %s", makeIndex)
	}
	got, err := s.read(ctx)
	switch {
	case err == nil:
		s.s = got
	case errors.Is(err, codec.ErrCorrupt), errors.Is(err, codec.ErrFormat):
		err = codec.NotPossiblef("the index %q is damaged, make it anew: %s: %v", s.index.Key, remakeIndex, err)
		s.err = err // the bytes of a version do not change
	case errors.Is(err, fs.ErrNotExist):
		err = codec.NotPossiblef("the index %q is gone, make it anew: %s", s.index.Key, remakeIndex)
	}
	return got, err
}

// indexSpare is how much longer an index is than its entries, at most.
const indexSpare = 4096

func (s *streams) read(ctx context.Context) (*codec.Streams, error) {
	_, block := codec.EncodingOf(s.stored)
	if s.index.Size > indexSpare+8*codec.Ceil(s.stored.Size(), block) {
		return nil, codec.Corruptf("%d bytes are too many for a disk of %d", s.index.Size, s.stored.Size())
	}
	o, err := stat(ctx, s.store, s.index)
	if err != nil {
		return nil, err
	}
	b := bytesSource(make([]byte, o.Size))
	if err := s.store.ReadRange(ctx, o, b, 0); err != nil {
		return nil, fmt.Errorf("read the index %q: %w", o.Key, err)
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != s.index.SHA256 {
		return nil, codec.Corruptf("another sha256 than the catalog has")
	}
	x, err := codec.OpenIndex(ctx, b, s.stored)
	if err != nil {
		return nil, err
	}
	return codec.NewStreams(ctx, s.stored, x)
}

// stat finds the object of an index.
func stat(ctx context.Context, store remote.Store, x *catalog.Index) (remote.Object, error) {
	o, err := store.Stat(ctx, x.Key)
	if err == nil && o.Size != x.Size {
		err = codec.Corruptf("%d bytes, the catalog has %d", o.Size, x.Size)
	}
	return o, err
}

// bytesSource is bytes as a source.
type bytesSource []byte

func (b bytesSource) Size() int64 { return int64(len(b)) }

func (b bytesSource) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return codec.ReadParts(ctx, p, off, b.Size(), func(_ context.Context, p []byte, off int64) (int, error) {
		return copy(p, b[off:]), nil
	})
}

// setWindows gives a disk that is one long stream the windows of its index, which
// are read as they are wanted. Each has a checksum of its own, so the index is
// not read whole. What is wrong with it costs time alone and is returned as a
// note.
func (o *Opener) setWindows(ctx context.Context, guest codec.Disk, x *catalog.Index) (readers []*cache.Reader, note string) {
	w, ok := guest.(codec.Windowed)
	if !ok || x == nil {
		return nil, ""
	}
	readers, err := func() ([]*cache.Reader, error) {
		version, err := stat(ctx, o.cfg.Store, x)
		if err != nil {
			return nil, err
		}
		r := o.reader(version)
		index, err := codec.OpenIndex(ctx, r, guest)
		if err != nil {
			r.Close()
			return nil, err
		}
		w.SetWindows(index.Window)
		return []*cache.Reader{r}, nil
	}()
	if err != nil {
		return nil, fmt.Sprintf("its index %q is not used, reads far into the disk take longer: %v", x.Key, err)
	}
	return readers, ""
}

// Possible is nil if the disk has a file in view v, as far as is known without
// reading its index; else [ErrNotShown] with the reason for people. It does no
// I/O.
func (d *Disk) Possible(v codec.View) error {
	r, ok := v.(codec.Reframing)
	if !ok {
		_, err := d.File(context.Background(), v) // laid out of the map alone
		return err
	}
	if err := d.streams.takes(r); err != nil {
		return fmt.Errorf("%w: %w", ErrNotShown, err)
	}
	return nil
}

// ready reads what v hands on.
func (d *Disk) ready(ctx context.Context, v codec.View) error {
	if err := d.Possible(v); err != nil {
		return err
	}
	_, err := d.streams.Streams(ctx)
	if errors.Is(err, codec.ErrNotPossible) {
		return fmt.Errorf("%w: %w", ErrNotShown, err)
	} else if err != nil {
		return fmt.Errorf("%q as %s: %w", d.Object.Key, v.Name(), err)
	}
	return nil
}

// offered is the disk as v lays it out: with its streams where v hands them on.
func (d *Disk) offered(v codec.View) codec.Disk {
	if _, ok := v.(codec.Reframing); ok {
		return d.streams
	}
	return d.guest
}
