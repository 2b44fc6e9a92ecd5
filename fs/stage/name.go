package stage

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"imagefs/remote/catalog"
)

// ErrName says that a file's name gives it no place in an image.
var ErrName = errors.New("not the name of a disk")

// Target is the disk that a file is to become.
type Target struct {
	Image  string
	Number int
	Format string // that the name's extension promises; "" goes by content alone
}

// maxDisks bounds a disk number, as the catalog does for adopted objects.
const maxDisks = 256

// Object is the folder of the store that imported objects lie in.
const Object = "disks/"

// unfinished ends the names that programs give to what they have not finished.
var unfinished = []string{".part", ".tmp", ".partial", ".filepart", ".crdownload"}

// Unfinished reports whether a name is one of those that are renamed when the
// file is complete: hidden ones, as rsync makes, and those of downloaders.
func Unfinished(name string) bool {
	if strings.HasPrefix(name, ".") {
		return true
	}
	for _, s := range unfinished {
		if strings.HasSuffix(name, s) {
			return true
		}
	}
	return false
}

// ParseName says what a file in a folder of images/ is to become: diskN.EXT in
// the folder of an image, NAME.EXT in images/ itself (folder ""), which is disk
// 0 of image NAME. exts maps extensions to formats.
func ParseName(exts map[string]string, folder, name string) (Target, error) {
	dot := strings.LastIndexByte(name, '.')
	format, ok := "", false
	if dot > 0 {
		format, ok = exts[strings.ToLower(name[dot+1:])]
	}
	if !ok {
		return Target{}, fmt.Errorf("%w: %q has none of the extensions %s", ErrName, name,
			strings.Join(slices.Sorted(maps.Keys(exts)), ", "))
	}
	stem := name[:dot]
	if folder == "" {
		if err := catalog.CheckName(stem); err != nil {
			return Target{}, fmt.Errorf("%w: %w", ErrName, err)
		}
		return Target{stem, 0, format}, nil
	}
	digits, isDisk := strings.CutPrefix(stem, "disk")
	n, err := strconv.Atoi(digits)
	if !isDisk || err != nil || strconv.Itoa(n) != digits || n < 0 || n >= maxDisks {
		return Target{}, fmt.Errorf("%w: %q is not diskN.%s with N from 0 to %d", ErrName, name, name[dot+1:], maxDisks-1)
	}
	return Target{folder, n, format}, nil
}

// guess is ParseName of the name that an unfinished file will probably get,
// for nothing that matters.
func guess(exts map[string]string, folder, name string) (Target, bool) {
	for _, s := range unfinished {
		name = strings.TrimSuffix(name, s)
	}
	if hidden, ok := strings.CutPrefix(name, "."); ok {
		name = hidden
		if dot := strings.LastIndexByte(name, '.'); dot > 0 {
			if t, err := ParseName(exts, folder, name[:dot]); err == nil {
				return t, true // .disk0.vmdk.a1B2c3
			}
		}
	}
	t, err := ParseName(exts, folder, name)
	return t, err == nil
}

// maxStem bounds the part of an image's name that an object's key repeats.
const maxStem = 100

// newKey is the key of an object to be: readable, and never used before.
func newKey(t Target, format string) string {
	stem := t.Image
	if len(stem) > maxStem {
		stem = stem[:maxStem]
		for !utf8.ValidString(stem) {
			stem = stem[:len(stem)-1]
		}
	}
	return fmt.Sprintf("%s%s.%d.%s.%s", Object, stem, t.Number, strings.ToLower(rand.Text()[:16]), format)
}

// exists says that a name is taken.
func exists(what string) error { return fmt.Errorf("%s: %w", what, fs.ErrExist) }
