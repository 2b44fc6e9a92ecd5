package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

var onItsWay = regexp.MustCompile(`(?m)^(sealed|uploading) `)

// settle waits until the daemon has taken up what its predecessors left, and
// checks it.
func (k *killer) settle(m *Mounted) {
	k.Helper()
	var uploads string
	waitFor(k, "what is sealed to be stored", func() bool {
		uploads = m.status(k, "uploads")
		return !onItsWay.MatchString(uploads)
	})
	k.checkEntries()
	for name, im := range k.images {
		if slices.Contains(k.old, name) && im.before == "" {
			continue // looked at before
		}
		k.checkImage(m, im, uploads)
	}
	k.checkStore()
	if k.Failed() {
		k.Logf("round %d; uploads:\n%serrors:\n%slog:\n%s", k.round, uploads, m.status(k, "errors"), m.Log)
	}
	k.clean(m)
}

// checkEntries looks for images that are published in part, past the program.
func (k *killer) checkEntries() {
	k.Helper()
	entries, err := filepath.Glob(k.object("catalog/*.json"))
	if err != nil {
		k.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(e)
		if err != nil {
			k.Fatal(err)
		}
		if len(b) == 0 {
			continue // the mark of one that went away
		}
		var j imageJSON
		if err := json.Unmarshal(b, &j); err != nil {
			k.Errorf("%s: %v", e, err)
		}
		for _, d := range j.Disks {
			if st, err := os.Stat(k.object(d.Key)); err != nil || st.Size() != d.Size {
				k.Errorf("round %d: %s names an object of %d bytes: %v %v", k.round, e, d.Size, st, err)
			}
		}
	}
}

// checkImage holds an image to what was copied in. There is none only if no
// program was told so.
func (k *killer) checkImage(m *Mounted, im *killed, uploads string) {
	k.Helper()
	d, err := diskOf(m, im.name, 0)
	switch {
	case err == nil:
		k.checkBytes(m, im, d)
	case !errors.Is(err, os.ErrNotExist):
		k.Errorf("round %d: %s: %v", k.round, im.name, err)
	case im.returned:
		k.Errorf("round %d: the import of %s as %s had returned, and it is gone", k.round, im.file, im.name)
	case im.before != "":
		k.Errorf("round %d: %s was there, and is gone", k.round, im.name)
	default:
		k.checkSpool(m, im, uploads)
		delete(k.images, im.name)
	}
}

func (k *killer) checkBytes(m *Mounted, im *killed, d disk) {
	k.Helper()
	object := k.object(d.key)
	if sum := sum256(k, object); sum != d.sha256 {
		k.Errorf("round %d: %s: image.json says sha256 %s of %s, it is %s", k.round, im.name, d.sha256, d.key, sum)
	}
	if d.format != "vhd" { // which qemu-img does not check
		if out, err := try(k, "qemu-img", "check", "-f", d.format, object); err != nil {
			k.Errorf("round %d: %s: %v\n%s", k.round, im.name, err, out)
		}
	}
	path := m.Path("images", im.name, "disk0."+im.ext)
	got := sum256(k, path)
	switch {
	case got == sum256(k, im.file):
		if !im.returned {
			k.resumed++
		}
	case im.before == "" || got != sum256(k, im.before):
		k.Errorf("round %d: %s is not what was copied in", k.round, path)
	case im.returned:
		k.Errorf("round %d: %s is what it was before an import that had returned", k.round, path)
	default: // the old one; the attempt is in the spool or had not begun
		im.file = im.before
	}
	im.before, im.returned = "", true
	if !slices.Contains(k.old, im.name) {
		k.old = append(k.old, im.name)
	}
}

var uploadLine = regexp.MustCompile(`^(\w+) "([^"]*)" (\d+) bytes.*\(([^()]*)\)$`)

// checkSpool looks for the bytes of a file that was not stored.
func (k *killer) checkSpool(m *Mounted, im *killed, uploads string) {
	k.Helper()
	want, err := os.ReadFile(im.file)
	if err != nil {
		k.Fatal(err)
	}
	found := false
	for line := range strings.Lines(uploads) {
		f := uploadLine.FindStringSubmatch(strings.TrimSpace(line))
		if f == nil {
			k.Errorf("uploads: %q", line)
			continue
		}
		if !strings.HasPrefix(strings.TrimPrefix(f[2], "."), im.name+".") && !strings.HasPrefix(f[2], im.name+"/") {
			continue
		}
		found = true
		k.kept++
		got, err := os.ReadFile(f[4])
		if err != nil || f[1] != "writing" || int64(len(got)) < im.synced || !bytes.HasPrefix(want, got) {
			k.Errorf("round %d: %s is kept as %s: %d bytes of %d, %d synced: %v", k.round, im.name, strings.TrimSpace(line), len(got), len(want), im.synced, err)
		}
		if view, err := os.ReadFile(m.Path("images", f[2])); err != nil || !bytes.Equal(view, got) {
			k.Errorf("round %d: %s is not shown as it is in the spool: %v", k.round, f[2], err)
		}
	}
	if !found && im.synced > 0 {
		k.Errorf("round %d: %s had synced %d bytes, and is gone", k.round, im.name, im.synced)
	}
}

// checkStore looks for what is unfinished in the store.
func (k *killer) checkStore() {
	k.Helper()
	for _, g := range k.gc("--dry-run") {
		if g.Kind == "upload" {
			k.Errorf("round %d: an unfinished upload in the store: %+v", k.round, g)
		}
	}
	if temp, err := filepath.Glob(k.object("disks/.*")); err != nil || len(temp) > 0 {
		k.Errorf("round %d: left in the store: %q %v", k.round, temp, err)
	}
}

// collected is what imagefs gc tells of.
type collected struct{ Kind, Key, Error string }

// gc collects all garbage, however young: nothing is on its way.
func (k *killer) gc(flags ...string) []collected {
	k.Helper()
	args := append([]string{"gc", "--json", "--older-than", "0s"}, append(k.flags, flags...)...)
	out, stderr, code := imagefsEnv(k, k.env, append(args, k.url)...)
	var j struct{ Removed []collected }
	if err := json.Unmarshal([]byte(out), &j); err != nil || code != 0 {
		k.Fatalf("gc: exit code %d, %v: %s%s", code, err, out, stderr)
	}
	return j.Removed
}

// clean removes what was looked at, so that the disk does not fill up: what is
// kept in the spool, by name, and all but the newest images.
func (k *killer) clean(m *Mounted) {
	k.Helper()
	for line := range strings.Lines(m.status(k, "uploads")) {
		if f := uploadLine.FindStringSubmatch(strings.TrimSpace(line)); f != nil {
			if err := os.Remove(m.Path("images", f[2])); err != nil {
				k.Errorf("round %d: remove what is unfinished: %v", k.round, err)
			}
		}
	}
	if len(k.old) < 8 {
		return
	}
	n := len(k.old) - 4
	args := append(append([]string{"rm"}, k.flags...), k.url)
	if _, stderr, code := imagefsEnv(k, k.env, append(args, k.old[:n]...)...); code != 0 {
		k.Errorf("rm: exit code %d: %s", code, stderr)
	}
	for _, name := range k.old[:n] {
		delete(k.images, name)
	}
	k.old = slices.Clone(k.old[n:])
	// The server may still be at the last request of the daemon that was killed.
	var left []string
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		k.gc()
		if left = k.unnamed(m); len(left) == 0 || time.Now().After(end) {
			break
		}
	}
	if len(left) > 0 {
		k.Errorf("round %d: nothing names %q, and gc left it", k.round, left)
	}
}

// unnamed are the objects that no image of the mount has.
func (k *killer) unnamed(m *Mounted) (left []string) {
	named := make(map[string]bool)
	for _, name := range k.old {
		if d, err := diskOf(m, name, 0); err == nil {
			named[d.key], named[d.index] = true, true
		}
	}
	for _, key := range k.everything(k) {
		if !named[key] {
			left = append(left, key)
		}
	}
	return left
}
