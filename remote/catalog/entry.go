package catalog

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"imagefs/remote"
)

// Folder holds the entries, Folder + NAME + ".json" each.
const (
	Folder = "catalog/"
	suffix = ".json"
)

// maxEntry bounds an entry: a few disks and some properties, never more.
const maxEntry = 1 << 20

// Entry is the JSON document of one image, version 1. Fields that are not
// known here, of the entry and of its disks, are ignored by readers and kept
// by whoever rewrites one: so does [FormatEntry] with those that [ParseEntry]
// met.
type Entry struct {
	Version int       `json:"version"` // of this document's form: 1
	ID      string    `json:"id"`      // UUID, never changes
	Name    string    `json:"name"`
	Status  string    `json:"status,omitempty"` // "active" unless it says else
	Created time.Time `json:"created,omitzero"`
	Updated time.Time `json:"updated,omitzero"` // of the last change, later than of the one before
	Deleted time.Time `json:"deleted,omitzero"` // of an entry in the folder of deleted ones

	// RenamedFrom is the name before, of an entry that was not changed since
	// it was renamed, and RenamedETag the version it is a copy of, "" for an
	// adopted image. If that is still there, the rename was cut.
	RenamedFrom string `json:"renamed_from,omitempty"`
	RenamedETag string `json:"renamed_etag,omitempty"`
	// Hidden marks what is no deleted image: it only keeps the objects that
	// lie at the top under its name from being adopted.
	Hidden bool `json:"hidden,omitempty"`
	// Purging marks a deleted image that GC has begun to remove.
	Purging bool `json:"purging,omitempty"`

	Tags    []string          `json:"tags,omitempty"`
	Props   map[string]string `json:"properties,omitempty"`
	Adopted []EntryObject     `json:"adopted,omitempty"` // what the image was adopted from, if it was
	Disks   []EntryDisk       `json:"disks"`             // ascending by Number

	rest fields
}

// EntryDisk is one disk of an [Entry].
type EntryDisk struct {
	Number      int       `json:"-"`      // "number", left out where it is the disk's place in the list
	Key         string    `json:"key"`    // of the object, from the store's folder
	Format      string    `json:"format"` // what the object is, such as "qcow2"
	Size        int64     `json:"size,omitempty"`
	VirtualSize int64     `json:"virtual_size,omitempty"`
	SHA256      string    `json:"sha256,omitempty"`   // of the object, hex
	Modified    time.Time `json:"modified,omitzero"`  // of the file that was imported
	Original    *Original `json:"original,omitempty"` // nil if the object is what was imported
	Declared    bool      `json:"declared,omitempty"` // the format was said on purpose; content was not probed
	Index       *Index    `json:"index,omitempty"`    // nil if there is none

	rest fields
}

// Index is an object beside a disk's, with what was found out about the disk
// at its import: an aid to reading that can be made anew from the disk.
type Index struct {
	Key    string `json:"key"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"` // hex
}

// check reports what a reader of x could not rely on.
func (x *Index) check() error {
	if x == nil {
		return nil
	}
	err := remote.CheckKey(x.Key)
	switch {
	case err != nil:
	case x.Size <= 0:
		err = fmt.Errorf("size %d is not positive", x.Size)
	case x.SHA256 == "":
		err = fmt.Errorf("no sha256")
	default:
		err = checkSHA256(x.SHA256)
	}
	if err != nil {
		return fmt.Errorf("index: %w", err)
	}
	return nil
}

// Original is the file that was imported, where its disk is stored in another
// format.
type Original struct {
	Format string `json:"format"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256,omitempty"` // hex
}

// EntryObject is a version of an object.
type EntryObject struct {
	Key      string    `json:"key"`
	ETag     string    `json:"etag"`
	Size     int64     `json:"size"`
	Modified time.Time `json:"modified,omitzero"` // as the store says
}

// is reports whether o is that version: not one of the same bytes put later.
func (v EntryObject) is(o remote.Object) bool {
	return v.Key == o.Key && v.ETag == o.ETag && v.Size == o.Size && v.Modified.Equal(o.ModTime)
}

// check reports what a reader of d could not rely on.
func (d *EntryDisk) check() error {
	if err := checkNumber(d.Number); err != nil {
		return err
	}
	err := remote.CheckKey(d.Key)
	switch {
	case err != nil:
	case d.Format == "":
		err = fmt.Errorf("no format")
	case d.Size < 0 || d.VirtualSize < 0:
		err = fmt.Errorf("size %d or virtual size %d is negative", d.Size, d.VirtualSize)
	default:
		err = checkSHA256(d.SHA256)
	}
	if o := d.Original; err == nil && o != nil {
		switch {
		case o.Format == "":
			err = fmt.Errorf("original: no format")
		case o.Size < 0:
			err = fmt.Errorf("original: size %d is negative", o.Size)
		default:
			err = checkSHA256(o.SHA256)
		}
	}
	if err == nil {
		err = d.Index.check()
	}
	if err != nil {
		return fmt.Errorf("disk %d: %w", d.Number, err)
	}
	return nil
}

func checkNumber(n int) error {
	if n < 0 || n >= maxDisks {
		return fmt.Errorf("disk number %d is not between 0 and %d", n, maxDisks-1)
	}
	return nil
}

func checkSHA256(s string) error {
	if h, err := hex.DecodeString(s); err != nil || len(h) != 0 && len(h) != sha256.Size {
		return fmt.Errorf("sha256 %q is not 64 hex digits", s)
	}
	return nil
}

// disk returns the disk with a number, nil without one.
func (e *Entry) disk(n int) *EntryDisk {
	for i := range e.Disks {
		if e.Disks[i].Number == n {
			return &e.Disks[i]
		}
	}
	return nil
}

// ParseID reads a UUID in its text form.
func ParseID(s string) (id [16]byte, err error) {
	h, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(h) != len(id) || FormatID([16]byte(h)) != strings.ToLower(s) {
		return id, fmt.Errorf("id %q is not a UUID", s)
	}
	return [16]byte(h), nil
}

// FormatID writes a UUID in its text form.
func FormatID(id [16]byte) string {
	h := hex.EncodeToString(id[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// newID returns a random UUID, version 4.
func newID() (id [16]byte) {
	rand.Read(id[:]) // never fails
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return id
}

// adoptedID is the identity of an image that has no entry. It depends on the
// name alone, so it is the same in every copy of the store.
func adoptedID(name string) [16]byte {
	h := sha256.Sum256([]byte("imagefs adopted image 1\x00" + name))
	return hashID(h[:])
}

// hashID makes a UUID, version 8, of a hash.
func hashID(h []byte) (id [16]byte) {
	copy(id[:], h)
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return id
}

// stamp returns the present time, or one after prev if that is not yet over:
// a change has a later time than the one before, whoever's clock it was.
func stamp(prev time.Time) time.Time {
	now := time.Now().UTC()
	if next := prev.UTC().Add(1); next.After(now) && next.Year() <= 9999 {
		return next
	}
	return now
}
