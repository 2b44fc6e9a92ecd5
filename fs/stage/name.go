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

// Target is what a file is to become: a disk, or with Package set a whole image.
type Target struct {
	Image   string
	Number  int
	Format  string // that the name's extension promises; "" goes by content alone
	Package string // kind of package that the extension promises; "" for a disk
}

// Exts are the extensions of names, in lower case, and what they promise.
type Exts struct {
	Disks    map[string]string // formats
	Packages map[string]string // kinds of packages
}

// All are all extensions, sorted.
func (x Exts) All() []string {
	exts := slices.AppendSeq(slices.Collect(maps.Keys(x.Disks)), maps.Keys(x.Packages))
	slices.Sort(exts)
	return exts
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
// 0 of image NAME. A package is the image NAME, as images/NAME.EXT or as
// images/NAME/NAME.EXT.
func ParseName(exts Exts, folder, name string) (Target, error) {
	dot := strings.LastIndexByte(name, '.')
	ext := ""
	if dot > 0 {
		ext = strings.ToLower(name[dot+1:])
	}
	format, isDisk := exts.Disks[ext]
	pack, isPackage := exts.Packages[ext]
	if !isDisk && !isPackage {
		return Target{}, fmt.Errorf("%w: %q has none of the extensions %s", ErrName, name, strings.Join(exts.All(), ", "))
	}
	stem := name[:dot]
	if folder == "" {
		if err := catalog.CheckName(stem); err != nil {
			return Target{}, fmt.Errorf("%w: %w", ErrName, err)
		}
		return Target{Image: stem, Format: format, Package: pack}, nil
	}
	if isPackage {
		if stem != folder {
			return Target{}, fmt.Errorf("%w: %q holds a whole image: in the folder of image %q it is %s.%s", ErrName, name, folder, folder, ext)
		}
		return Target{Image: folder, Package: pack}, nil
	}
	digits, ok := strings.CutPrefix(stem, "disk")
	n, err := strconv.Atoi(digits)
	if !ok || err != nil || strconv.Itoa(n) != digits || n < 0 || n >= maxDisks {
		return Target{}, fmt.Errorf("%w: %q is not diskN.%s with N from 0 to %d", ErrName, name, name[dot+1:], maxDisks-1)
	}
	return Target{Image: folder, Number: n, Format: format}, nil
}

// guess is ParseName of the name that an unfinished file will probably get,
// for nothing that matters.
func guess(exts Exts, folder, name string) (Target, bool) {
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
func newKey(image string, number int, format string) string {
	stem := image
	if len(stem) > maxStem {
		stem = stem[:maxStem]
		for !utf8.ValidString(stem) {
			stem = stem[:len(stem)-1]
		}
	}
	return fmt.Sprintf("%s%s.%d.%s.%s", Object, stem, number, strings.ToLower(rand.Text()[:16]), format)
}

// exists says that a name is taken.
func exists(what string) error { return fmt.Errorf("%s: %w", what, fs.ErrExist) }
