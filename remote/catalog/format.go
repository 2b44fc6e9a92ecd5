package catalog

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// fields are members of a JSON object that are not known here.
type fields map[string]json.RawMessage

// The forms in which entries and disks stand in a document.
type (
	plainEntry Entry
	plainDisk  EntryDisk

	wireEntry struct {
		plainEntry
		Disks []json.RawMessage `json:"disks"`
	}
	wireDisk struct {
		Number *int `json:"number,omitempty"`
		plainDisk
	}
)

var (
	entryNames = names(reflect.TypeFor[plainEntry]())
	diskNames  = append(names(reflect.TypeFor[plainDisk]()), "number")
)

// names are the JSON names of the members of a struct.
func names(t reflect.Type) []string {
	var list []string
	for i := range t.NumField() {
		if name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ","); name != "" && name != "-" {
			list = append(list, name)
		}
	}
	return list
}

// ParseEntry reads an entry and checks what a reader relies on.
func ParseEntry(b []byte) (*Entry, error) {
	if err := checkDepth(b); err != nil {
		return nil, err
	}
	var w wireEntry
	rest, err := decode(b, &w, entryNames)
	if err != nil {
		return nil, fmt.Errorf("entry is not valid JSON: %w", err)
	}
	e := Entry(w.plainEntry)
	e.Disks, e.rest = nil, rest
	if e.Version != 1 {
		return nil, fmt.Errorf("entry has version %d, only 1 is known", e.Version)
	}
	if _, err := ParseID(e.ID); err != nil {
		return nil, fmt.Errorf("entry: %w", err)
	}
	switch n := len(w.Disks); {
	case n == 0:
		return nil, fmt.Errorf("entry names no disk")
	case n > maxDisks:
		return nil, fmt.Errorf("entry names %d disks, more than %d", n, maxDisks)
	}
	for i, b := range w.Disks {
		d, err := parseDisk(b, i)
		if err == nil && e.disk(d.Number) != nil {
			err = fmt.Errorf("two disks have the number %d", d.Number)
		}
		if err != nil {
			return nil, fmt.Errorf("entry: %w", err)
		}
		e.Disks = append(e.Disks, d)
	}
	e.sort()
	return &e, nil
}

// parseDisk reads the disk at a place of the list.
func parseDisk(b []byte, place int) (EntryDisk, error) {
	var w wireDisk
	rest, err := decode(b, &w, diskNames)
	if err != nil {
		return EntryDisk{}, fmt.Errorf("disk %d is not valid: %w", place, err)
	}
	d := EntryDisk(w.plainDisk)
	d.Number, d.rest = place, rest
	if w.Number != nil {
		d.Number = *w.Number
	}
	return d, d.check()
}

func (e *Entry) sort() {
	slices.SortFunc(e.Disks, func(a, b EntryDisk) int { return cmp.Compare(a.Number, b.Number) })
}

// FormatEntry writes an entry: the same bytes for the same entry. It refuses
// what ParseEntry would.
func FormatEntry(e *Entry) ([]byte, error) {
	b, err := format(e)
	if err == nil {
		_, err = ParseEntry(b)
	}
	if err == nil && len(b) > maxEntry {
		err = fmt.Errorf("%d bytes are more than %d", len(b), maxEntry)
	}
	if err != nil {
		return nil, fmt.Errorf("write the entry of %q: %w", e.Name, err)
	}
	return b, nil
}

func format(e *Entry) ([]byte, error) {
	w := wireEntry{plainEntry: plainEntry(*e)}
	sorted := Entry{Disks: slices.Clone(e.Disks)}
	sorted.sort()
	for i, d := range sorted.Disks {
		wd := wireDisk{plainDisk: plainDisk(d)}
		if d.Number != i {
			wd.Number = &d.Number
		}
		b, err := encode(wd, d.rest)
		if err != nil {
			return nil, fmt.Errorf("disk %d: %w", d.Number, err)
		}
		w.Disks = append(w.Disks, b)
	}
	b, err := encode(w, e.rest)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", "  "); err != nil {
		return nil, err
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

// decode reads the JSON object b into v and returns the members of other names.
func decode(b []byte, v any, names []string) (fields, error) {
	if err := json.Unmarshal(b, v); err != nil {
		return nil, err
	}
	var rest fields
	if err := json.Unmarshal(b, &rest); err != nil {
		return nil, err
	}
	maps.DeleteFunc(rest, func(name string, _ json.RawMessage) bool {
		// Names are matched as encoding/json does.
		return slices.ContainsFunc(names, func(known string) bool { return strings.EqualFold(name, known) })
	})
	return rest, nil
}

// encode writes v, which becomes a JSON object that is not empty, and after
// its members those of rest, sorted.
func encode(v any, rest fields) ([]byte, error) {
	b, err := marshal(v)
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(rest)) {
		key, err := marshal(name)
		if err != nil {
			return nil, err
		}
		b = append(b[:len(b)-1], ',')
		b = append(append(b, key...), ':')
		b = append(append(b, rest[name]...), '}')
	}
	return b, nil
}

// marshal is json.Marshal that leaves "<", ">" and "&" readable.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// maxDepth bounds how deep a document nests: indented, each level costs its
// depth again.
const maxDepth = 64

// checkDepth reports whether a document nests too deep. Whether it is JSON
// shows later.
func checkDepth(b []byte) error {
	depth, quoted := 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return fmt.Errorf("entry is not valid: it nests deeper than %d levels", maxDepth)
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return nil
}
