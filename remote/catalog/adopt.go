package catalog

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

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
	if base, n, ok := numbered(c.stem); ok {
		c.base, c.number = base, n
	}
	return c, true
}

// numbered takes the number of a disk off a key without extension.
func numbered(stem string) (base string, n int, ok bool) {
	dash := strings.LastIndexByte(stem, '-')
	if dash <= 0 {
		return "", 0, false
	}
	n, err := strconv.Atoi(stem[dash+1:])
	// "-00" and "-01" are names, so that a disk has one spelling.
	ok = err == nil && n >= 0 && n < maxDisks && strconv.Itoa(n) == stem[dash+1:]
	return stem[:dash], n, ok
}

// maxDisks bounds a disk number: far above any machine, far below a date.
const maxDisks = 256

// group is what makes up an adopted image: immutable.
type group struct {
	disks   []Disk // ascending by number, then by key; of one number there may be several
	renewed bool   // its identity is that of its objects: that of its name is another image's
}

// adopt groups candidates into images, by name.
func adopt(cs []candidate) map[string]*group {
	grouped := make(map[string]bool) // names that have a disk "-0"
	for _, c := range cs {
		if c.number == 0 {
			grouped[c.base] = true
		}
	}
	groups := make(map[string]*group)
	for _, c := range cs {
		name, number := c.stem, 0
		if c.number >= 0 && grouped[c.base] {
			name, number = c.base, c.number
		}
		g := groups[name]
		if g == nil {
			g = new(group)
			groups[name] = g
		}
		g.disks = append(g.disks, Disk{Number: number, Format: c.format, Object: c.object})
	}
	for _, g := range groups {
		slices.SortFunc(g.disks, func(a, b Disk) int {
			return cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(a.Object.Key, b.Object.Key))
		})
	}
	return groups
}

// modified is the time of the newest of some objects.
func modified(disks []Disk) (t time.Time) {
	for _, d := range disks {
		t = later(t, d.Object.ModTime)
	}
	return t
}

// image makes the image of a name that g is.
func (g *group) image(name string) *Image {
	im := &Image{Name: name, ID: adoptedID(name), Status: "active", ModTime: modified(g.disks), Disks: g.disks}
	if g.renewed {
		im.ID = objectsID(im)
	}
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
	return im
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
