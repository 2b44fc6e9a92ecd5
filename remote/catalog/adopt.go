package catalog

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"imagefs/remote"
)

// candidate is an object that may be adopted, its key taken apart.
type candidate struct {
	stem   string // key without extension
	base   string // stem without "-<n>"
	number int    // n, or -1
	format string
	object remote.Object
}

// parse takes a key apart; ok is false for what is not adopted.
func parse(o remote.Object, exts map[string]string) (c candidate, ok bool) {
	dot := strings.LastIndexByte(o.Key, '.')
	if dot <= 0 {
		return c, false
	}
	format, ok := exts[strings.ToLower(o.Key[dot+1:])]
	if !ok || CheckName(o.Key[:dot]) != nil {
		return c, false
	}
	c = candidate{stem: o.Key[:dot], number: -1, format: format, object: o}
	if dash := strings.LastIndexByte(c.stem, '-'); dash > 0 {
		digits := c.stem[dash+1:]
		n, err := strconv.Atoi(digits)
		// "-00" and "-01" are names, so that a disk has one spelling.
		if err == nil && n >= 0 && n < maxDisks && strconv.Itoa(n) == digits {
			c.base, c.number = c.stem[:dash], n
		}
	}
	return c, true
}

// maxDisks bounds a disk number: far above any machine, far below a date.
const maxDisks = 256

// adopt groups candidates into images.
func adopt(cs []candidate) map[string]*Image {
	grouped := make(map[string]bool) // names that have a disk "-0"
	for _, c := range cs {
		if c.number == 0 {
			grouped[c.base] = true
		}
	}
	images := make(map[string]*Image)
	for _, c := range cs {
		name, number := c.stem, 0
		if c.number >= 0 && grouped[c.base] {
			name, number = c.base, c.number
		}
		im := images[name]
		if im == nil {
			im = &Image{Name: name, ID: adoptedID(name), Status: "active"}
			images[name] = im
		}
		im.Disks = append(im.Disks, Disk{Number: number, Format: c.format, Object: c.object})
		if c.object.ModTime.After(im.ModTime) {
			im.ModTime = c.object.ModTime
		}
	}
	for _, im := range images {
		slices.SortFunc(im.Disks, func(a, b Disk) int {
			return cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(a.Object.Key, b.Object.Key))
		})
		for i := 1; i < len(im.Disks); i++ {
			if a, b := im.Disks[i-1], im.Disks[i]; a.Number == b.Number {
				im.Err = fmt.Errorf("%q and %q both claim to be disk %d of image %q: rename or remove one",
					a.Object.Key, b.Object.Key, a.Number, im.Name)
			}
		}
		b, err := format(describe(im))
		if im.JSON = b; im.Err == nil {
			im.Err = err
		}
	}
	return images
}

// CheckName reports why name cannot be an image's: it is a folder of the mount
// and a part of keys.
func CheckName(name string) error {
	switch {
	case strings.HasPrefix(name, "."):
		return fmt.Errorf("image name %q begins with a dot", name)
	case strings.ContainsRune(name, '/'):
		return fmt.Errorf("image name %q contains a slash", name)
	case len(name)+len(suffix) > 200:
		return fmt.Errorf("image name %q is longer than %d bytes", name, 200-len(suffix))
	}
	return remote.CheckKey(name)
}
