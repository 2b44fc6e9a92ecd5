// Package remote states what imagefs asks of an object store: immutable
// versions of named objects, read by range, listed by folder and written in
// one conditional step.
//
// A Store is safe for concurrent use. Keys are relative to the folder the
// store was opened on, use "/" between segments and follow [CheckKey], so that
// a store can move between a directory and a bucket by a plain copy.
//
// Errors are the standard sentinels where one fits (fs.ErrNotExist,
// fs.ErrExist, fs.ErrPermission) and the ones of this package where a caller
// has to tell more apart. A store translates its client's errors once, by
// code, and wraps them with what was being done and to which key.
package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"time"
	"unicode/utf8"
)

var (
	// ErrChanged says that an object is no longer the version that was
	// asked for: its bytes were replaced, or a conditional write lost.
	ErrChanged = errors.New("object changed")
	// ErrUnavailable says that the store could not be reached, or did not
	// deliver, within the retry budget. Trying again later may succeed.
	ErrUnavailable = errors.New("store unavailable")
	// ErrNoBucket says that the bucket or directory of the store does not exist.
	ErrNoBucket = errors.New("no such bucket")
	// ErrCredentials says that the store refused who is asking (unknown
	// key, wrong secret, expired token), as distinct from what was asked.
	ErrCredentials = errors.New("credentials refused")
	// ErrUnsupported says that the store cannot do what was asked, such
	// as a conditional write.
	ErrUnsupported = errors.New("not supported by the store")
)

// Object is one version of a stored object. The pair (Key, ETag) names its
// bytes for ever: a store that replaces an object gives it another ETag.
type Object struct {
	Key     string
	ETag    string // opaque, without quotes
	Size    int64  // bytes
	ModTime time.Time
}

// Cond is the condition of a Put. The zero value asks for none.
type Cond struct {
	Absent bool   // write only if the key does not exist, else fs.ErrExist
	ETag   string // write only over this version, else ErrChanged
}

// Store is an object store, or a folder of one.
type Store interface {
	// Stat describes the current version of key; fs.ErrNotExist without one.
	Stat(ctx context.Context, key string) (Object, error)

	// ReadRange fills p with the bytes of o from off on. It never returns
	// bytes of another version (ErrChanged), never a short read
	// (io.ErrUnexpectedEOF when the range passes o.Size), and resumes a
	// body that was cut at the missing byte until its budget is spent
	// (ErrUnavailable).
	ReadRange(ctx context.Context, o Object, p []byte, off int64) error

	// Put stores size bytes of r under key in one visible step and
	// returns the version written. A failed Put leaves no trace.
	Put(ctx context.Context, key string, r io.Reader, size int64, c Cond) (Object, error)

	// List yields the objects whose keys begin with prefix and have no "/"
	// after it, in byte order of their keys: those directly in a folder,
	// for a prefix that is "" or ends in "/", or of them those whose names
	// begin in one way. It does not descend. After an error it yields
	// nothing more.
	List(ctx context.Context, prefix string) iter.Seq2[Object, error]

	// Delete removes key. Removing what is not there is no error.
	Delete(ctx context.Context, key string) error
}

// maxSegment keeps keys valid on every server tried: some refuse path
// segments that no local file name could hold.
const maxSegment = 200

// CheckPrefix reports why no allowed key begins with prefix, or nil.
func CheckPrefix(prefix string) error {
	if err := CheckKey(prefix + "x"); err != nil {
		return fmt.Errorf("prefix %q: %w", prefix, err)
	}
	return nil
}

// CheckKey reports why key is not allowed, or nil. Allowed are non-empty
// UTF-8 keys of at most 1,024 bytes whose "/"-separated segments are 1 to 200
// bytes long, not "." or "..", and free of NUL and control characters.
func CheckKey(key string) error {
	switch {
	case key == "" || len(key) > 1024:
		return fmt.Errorf("key %q: length %d is not between 1 and 1024", key, len(key))
	case !utf8.ValidString(key):
		return fmt.Errorf("key %q: not UTF-8", key)
	}
	for s := range strings.SplitSeq(key, "/") {
		switch {
		case s == "" || s == "." || s == "..":
			return fmt.Errorf("key %q: segment %q is not allowed", key, s)
		case len(s) > maxSegment:
			return fmt.Errorf("key %q: a segment of %d bytes is longer than %d", key, len(s), maxSegment)
		}
		for _, r := range s {
			if r < 0x20 || r == 0x7f {
				return fmt.Errorf("key %q: control character %q is not allowed", key, r)
			}
		}
	}
	return nil
}
