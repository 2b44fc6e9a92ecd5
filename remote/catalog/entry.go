package catalog

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
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
// known here are kept by whoever rewrites one and ignored by readers.
type Entry struct {
	Version int               `json:"version"` // of this document's form: 1
	ID      string            `json:"id"`      // UUID, never changes
	Name    string            `json:"name"`
	Status  string            `json:"status,omitempty"` // "active" unless it says else
	Created time.Time         `json:"created,omitzero"`
	Tags    []string          `json:"tags,omitempty"`
	Props   map[string]string `json:"properties,omitempty"`
	Disks   []EntryDisk       `json:"disks"` // disk 0 first
}

// EntryDisk is one disk of an [Entry].
type EntryDisk struct {
	Key         string `json:"key"`    // of the object, from the store's folder
	Format      string `json:"format"` // what the object is, such as "qcow2"
	Size        int64  `json:"size,omitempty"`
	VirtualSize int64  `json:"virtual_size,omitempty"`
	SHA256      string `json:"sha256,omitempty"` // of the object, hex
}

// ParseEntry reads an entry and checks what a reader relies on.
func ParseEntry(b []byte) (*Entry, error) {
	var e Entry
	if err := json.Unmarshal(b, &e); err != nil {
		return nil, fmt.Errorf("entry is not valid JSON: %w", err)
	}
	if e.Version != 1 {
		return nil, fmt.Errorf("entry has version %d, only 1 is known", e.Version)
	}
	if _, err := ParseID(e.ID); err != nil {
		return nil, fmt.Errorf("entry: %w", err)
	}
	if len(e.Disks) == 0 {
		return nil, fmt.Errorf("entry names no disk")
	}
	for i, d := range e.Disks {
		if err := remote.CheckKey(d.Key); err != nil {
			return nil, fmt.Errorf("entry: disk %d: %w", i, err)
		}
		if d.Format == "" {
			return nil, fmt.Errorf("entry: disk %d: no format", i)
		}
		if h, err := hex.DecodeString(d.SHA256); err != nil || len(h) != 0 && len(h) != sha256.Size {
			return nil, fmt.Errorf("entry: disk %d: sha256 %q is not 64 hex digits", i, d.SHA256)
		}
	}
	return &e, nil
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

// adoptedID is the identity of an image that has no entry. It depends on the
// name alone, so it is the same in every copy of the store.
func adoptedID(name string) (id [16]byte) {
	h := sha256.Sum256([]byte("imagefs adopted image 1\x00" + name))
	copy(id[:], h[:])
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return id
}

// document is the entry that an adopted image would have, for people and
// scripts: the same bytes for the same objects.
func document(im *Image) []byte {
	e := Entry{Version: 1, ID: FormatID(im.ID), Name: im.Name, Status: im.Status}
	for _, d := range im.Disks {
		e.Disks = append(e.Disks, EntryDisk{Key: d.Object.Key, Format: d.Format, Size: d.Object.Size})
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		panic(err) // strings and numbers always encode
	}
	return b.Bytes()
}
