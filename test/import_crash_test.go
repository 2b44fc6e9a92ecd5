package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestImportsSurviveKills kills the daemon at random moments of imports, as
// often as IMAGEFS_KILLS says, and mounts again over the dead mount. What a
// program was told to be stored is there, images are whole or absent, what was
// not stored is in the spool, and the store holds nothing unfinished.
func TestImportsSurviveKills(t *testing.T) {
	needFUSE(t)
	tool(t, "rsync")
	files := killSources(t)
	inEachStore(t, func(t *testing.T, d *depot) {
		k := &killer{
			T: t, depot: d, mnt: t.TempDir(), spool: t.TempDir(), files: files,
			images: make(map[string]*killed), seed: uint64(time.Now().UnixNano()),
		}
		if s := os.Getenv("IMAGEFS_KILLS_SEED"); s != "" {
			k.seed, _ = strconv.ParseUint(s, 10, 64)
		}
		t.Logf("IMAGEFS_KILLS_SEED=%d", k.seed)
		k.rand = rand.New(rand.NewPCG(k.seed, 0))
		for k.round = range kills(t) {
			k.kill()
			if t.Failed() {
				break
			}
		}
		m := k.mount()
		k.settle(m)
		m.Stop(t)
		t.Logf("%d imports: %d had returned, %d were stored after the kill, %d were kept in the spool, %d had not begun",
			k.begun, k.returned, k.resumed, k.kept, k.begun-k.returned-k.resumed-k.kept)
	})
}

// kills is how often each daemon is killed.
func kills(t testing.TB) int {
	t.Helper()
	s := os.Getenv("IMAGEFS_KILLS")
	if s == "" {
		return 10
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("IMAGEFS_KILLS=%q: %v", s, err)
	}
	return n
}

// killSources are files to import, each format once, and one of three parts.
func killSources(t testing.TB) (files []string) {
	dir := importSources(t)
	for _, ext := range importExts {
		files = append(files, filepath.Join(dir, "vm."+ext))
	}
	big := filepath.Join(dir, "big.qcow2")
	storeAs(t, "qcow2", bigGuest(t), big)
	return append(files, big, big) // twice as likely
}

// A killer is a store whose daemon is killed again and again.
type killer struct {
	*testing.T
	*depot
	mnt, spool string
	files      []string
	seed       uint64
	rand       *rand.Rand
	round      int

	images map[string]*killed // that may be there
	old    []string           // stored images, oldest first

	begun, returned, resumed, kept int
}

// killed is an image whose import a kill may have cut.
type killed struct {
	name, ext string
	file      string // what is being copied in
	before    string // what the image holds until that is stored, "" for none
	returned  bool   // the program ended well
	synced    int64  // bytes that are safe in the spool
}

func (k *killer) mount() *Mounted {
	k.Helper()
	m := &Mounted{Dir: k.mnt, Log: &logBuffer{}, exited: make(chan struct{})}
	args := append([]string{"mount", "-f", "--formats", "all", "--spool", k.spool}, k.flags...)
	if k.rand.IntN(3) == 0 {
		args = append(args, "--write-back")
	}
	m.cmd = exec.Command(program(k, buildImagefs), append(args, k.url, k.mnt)...)
	m.cmd.Stdout, m.cmd.Stderr = m.Log, m.Log
	m.cmd.Env = append(os.Environ(), k.env...)
	if err := start(m.cmd, syscall.SIGTERM); err != nil {
		k.Fatal(err)
	}
	go func() {
		m.err = m.cmd.Wait()
		close(m.exited)
	}()
	k.Cleanup(func() {
		if !m.stopped {
			m.Kill(k)
			k.Logf("%s", m.Log)
		}
		unmountLazily(k.mnt)
	})
	waitFor(k, "the mount over the dead one", func() bool {
		select {
		case <-m.exited:
			m.stopped = true
			k.Fatalf("round %d: mount: %v\n%s", k.round, m.err, m.Log)
		default:
		}
		return isFUSE(k.mnt)
	})
	if n := mountsOn(k, k.mnt); n != 1 {
		k.Errorf("round %d: %d mounts lie on each other: dead ones were not cleared", k.round, n)
	}
	return m
}

// mountsOn is the number of mounts on dir, dead ones too.
func mountsOn(t testing.TB, dir string) (n int) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == dir {
			n++
		}
	}
	return n
}

// kill is one round: mount, look at what the last round left, begin imports,
// kill.
func (k *killer) kill() {
	k.Helper()
	m := k.mount()
	settled := k.rand.IntN(4) > 0
	if settled { // or else kill while it takes up what is left
		k.settle(m)
	}
	limit := 150
	var running []*running
	for n := range 1 + k.rand.IntN(3) {
		im := k.pick(n, settled)
		k.begun++
		if strings.HasPrefix(filepath.Base(im.file), "big") {
			limit = 1500
		}
		running = append(running, k.begin(m, im))
	}
	// The moment of the kill is what this test varies.
	time.Sleep(time.Duration(k.rand.IntN(limit*1000)) * time.Microsecond)
	_, _ = os.Stat(m.Dir) // which the kernel remembers of a dead mount, for a while
	m.Kill(k)
	for _, r := range running {
		r.wait(k)
	}
}

// pick chooses what is imported next: a new image, or over one that is there.
func (k *killer) pick(n int, settled bool) *killed {
	file := k.files[k.rand.IntN(len(k.files))]
	ext := strings.TrimPrefix(filepath.Ext(file), ".")
	if settled && len(k.old) > 0 && k.rand.IntN(4) == 0 {
		name := k.old[k.rand.IntN(len(k.old))]
		if im := k.images[name]; im.returned && im.ext == ext {
			*im = killed{name: name, ext: ext, file: file, before: im.file}
			return im
		}
	}
	im := &killed{name: fmt.Sprintf("r%dn%d", k.round, n), ext: ext, file: file}
	k.images[im.name] = im
	return im
}

// running is an import under way.
type running struct {
	im  *killed
	out bytes.Buffer
	cmd *exec.Cmd

	stdin  io.Closer // nil, or what a program waits for that leaves its file open
	synced int64     // bytes that it writes
}

// begin begins an import in one of the ways of users.
func (k *killer) begin(m *Mounted, im *killed) *running {
	k.Helper()
	r := &running{im: im}
	scripts := []string{
		`cp "$1" "$2/$3.$4"`,
		`cp --sparse=never -p "$1" "$2/$3.$4"`,
		`mkdir "$2/$3"; cp "$1" "$2/$3/disk0.$4"`,
		`rsync -a "$1" "$2/$3.$4"`,
		`cp "$1" "$2/$3.$4.part"; mv "$2/$3.$4.part" "$2/$3.$4"`,
		`dd if="$1" of="$2/$3.$4" bs=1M conv=fsync status=none`,
		"", // written in part, synced and left open
	}
	script := scripts[k.rand.IntN(len(scripts))]
	if im.before != "" {
		script = `cp "$1" "$2/$3/disk0.$4"`
	}
	if script == "" {
		k.leaveOpen(m, r)
		return r
	}
	r.cmd = exec.Command("bash", "-euc", script, "import", im.file, m.Path("images"), im.name, im.ext)
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.out
	if err := start(r.cmd, syscall.SIGKILL); err != nil {
		k.Fatal(err)
	}
	return r
}

// leaveOpen starts a program that writes a part of the file, syncs it and
// leaves it open. It has no children: their copies of the descriptor would be
// closed, which commits.
func (k *killer) leaveOpen(m *Mounted, r *running) {
	k.Helper()
	n := 1 + k.rand.Int64N(stat(k, r.im.file).Size)
	r.cmd = exec.Command(tool(k, "python3"), "-c", `import os, sys
b = open(sys.argv[1], "rb").read(int(sys.argv[3]))
f = open(sys.argv[2], "xb", buffering=0)
while b: b = b[f.write(b):]
os.fsync(f.fileno())
print("synced", flush=True)
sys.stdin.read()
os._exit(1)`, r.im.file, m.Path("images", r.im.name+"."+r.im.ext), fmt.Sprint(n))
	in, err := r.cmd.StdinPipe()
	if err != nil {
		k.Fatal(err)
	}
	r.stdin = in
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.out
	if err := start(r.cmd, syscall.SIGKILL); err != nil {
		k.Fatal(err)
	}
	r.synced = n
}

func (r *running) wait(k *killer) {
	if r.stdin != nil {
		r.stdin.Close()
	}
	ended := make(chan error, 1)
	go func() { ended <- r.cmd.Wait() }()
	select {
	case err := <-ended:
		if r.im.returned = err == nil; r.im.returned {
			k.returned++
		}
		if strings.HasPrefix(r.out.String(), "synced") {
			r.im.synced = r.synced
		}
	case <-time.After(patience):
		_ = r.cmd.Process.Kill()
		k.Errorf("round %d: an import of %s did not end within %v of the kill of the daemon", k.round, r.im.file, patience)
	}
}

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
			named[d.key] = true
		}
	}
	for _, key := range k.objects(k) {
		if !named[key] {
			left = append(left, key)
		}
	}
	return left
}
