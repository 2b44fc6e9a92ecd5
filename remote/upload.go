package remote

import (
	"context"
	"fmt"
	"io"
	"iter"
	"time"
)

// Uploader is a Store that takes an object in parts, some at a time and before
// its size is known.
type Uploader interface {
	// Upload begins an upload of key. Nothing shows at key until it is
	// completed; it lasts, and may take space, until it is completed or
	// aborted, beyond the end of this process.
	Upload(ctx context.Context, key string) (Upload, error)

	// AbortUploads ends every unfinished upload of exactly key, whoever
	// began it: what a process that was killed left is cleared away. No
	// upload is no error. A server that does not list its uploads is
	// ErrUnsupported; one that goes on listing those that were ended is
	// ErrUnavailable.
	AbortUploads(ctx context.Context, key string) error

	// Uploads yields the unfinished uploads of keys that begin with
	// prefix, in byte order of keys. After an error it yields nothing more.
	Uploads(ctx context.Context, prefix string) iter.Seq2[PendingUpload, error]
}

// PendingUpload is an upload that was neither completed nor aborted.
type PendingUpload struct {
	Key     string
	ID      string    // tells uploads of one key apart
	Started time.Time // or when it last got bytes, where the store knows that
}

// Upload is an object on its way into a store. The bytes of part n lie at
// PartOffset(n); all parts but the last are full, PartSize(n) bytes. An object
// of no bytes has no parts. Once it was aborted, by whomever, Part and Complete
// are fs.ErrNotExist.
type Upload interface {
	// Part stores part number, from 1 on, all bytes of r. Nothing of it is
	// held in memory: r is read again where that is needed. What was stored
	// is compared with what was read. A part stored again replaces the one
	// before. Several parts may be stored at a time, each number once.
	Part(ctx context.Context, number int, r *io.SectionReader) error

	// Complete makes the parts the object, in one visible step, after every
	// Part has returned. A part that is missing, or not the last and not
	// full, is an error. Keys of uploads are chosen not to be taken:
	// Complete does not replace an object, as far as the store can tell,
	// but fails with fs.ErrExist. After an error the object may exist all
	// the same; Complete may be called again, after success too.
	Complete(ctx context.Context) (Object, error)

	// Abort ends the upload and gives its space back. An upload that was
	// completed or aborted is left as it is, without error.
	Abort(ctx context.Context) error
}

// The sizes of parts are fixed by their numbers, so that parts can be stored
// before the size of the whole is known: small ones first, for objects that
// have few, larger ones later, so that ten thousand, the most that S3 takes,
// make up about 3 TiB.
const (
	MaxParts = 10_000

	smallParts, smallPart   = 1000, 16 << 20
	middleParts, middlePart = 3000, 64 << 20
	largeParts, largePart   = MaxParts - smallParts - middleParts, 512 << 20

	// MaxUpload is the size of the largest object that parts can make up, in bytes.
	MaxUpload = smallParts*smallPart + middleParts*middlePart + largeParts*largePart
)

// PartSize returns the size in bytes of a full part, 0 if no part has the number.
func PartSize(number int) int64 {
	switch {
	case number < 1 || number > MaxParts:
		return 0
	case number <= smallParts:
		return smallPart
	case number <= smallParts+middleParts:
		return middlePart
	}
	return largePart
}

// PartOffset returns where in the object a part begins, in bytes. Numbers below
// 1 begin at 0, those above MaxParts where the last part ends.
func PartOffset(number int) int64 {
	before := int64(min(max(number-1, 0), MaxParts))
	small := min(before, smallParts)
	middle := min(before-small, middleParts)
	return small*smallPart + middle*middlePart + (before-small-middle)*largePart
}

// CheckPart reports why no part of that number and size is possible, or nil.
func CheckPart(number int, size int64) error {
	switch full := PartSize(number); {
	case full == 0:
		return fmt.Errorf("part %d: number is not between 1 and %d", number, MaxParts)
	case size < 1 || size > full:
		return fmt.Errorf("part %d: %d bytes are not between 1 and %d", number, size, full)
	}
	return nil
}

// CheckParts reports why parts, their sizes by number, do not make an object,
// or its size.
func CheckParts(sizes map[int]int64) (total int64, err error) {
	for n := 1; n <= len(sizes); n++ {
		size, ok := sizes[n]
		if !ok {
			return 0, fmt.Errorf("part %d is missing, of %d", n, len(sizes))
		}
		if n < len(sizes) && size != PartSize(n) {
			return 0, fmt.Errorf("part %d of %d has %d bytes, not %d", n, len(sizes), size, PartSize(n))
		}
		total += size
	}
	return total, nil
}
