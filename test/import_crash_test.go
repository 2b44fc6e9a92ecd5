package test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
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
	return int(countOf(t, "IMAGEFS_KILLS", 10))
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
	if k.rand.IntN(8) > 0 {
		k.awaitFirst(m, running)
	}
	// The moment of the kill is what this test varies.
	time.Sleep(time.Duration(k.rand.IntN(limit*1000)) * time.Microsecond)
	_, _ = os.Stat(m.Dir) // which the kernel remembers of a dead mount, for a while
	m.Kill(k)
	for _, r := range running {
		r.wait(k)
	}
}

// awaitFirst waits until an import has begun, be it over: programs start slowly
// on a busy machine.
func (k *killer) awaitFirst(m *Mounted, running []*running) {
	k.Helper()
	waitFor(k, "an import to begin", func() bool {
		for _, r := range running {
			_, err := os.Stat(m.Path("images", r.im.name))
			if err == nil && r.im.before == "" || strings.Contains(m.status(k, "uploads"), r.im.name) || r.over() {
				return true
			}
		}
		return false
	})
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

	ended  chan struct{} // closed when the program ended
	err    error         // of it; valid once ended is closed
	stdin  io.Closer     // nil, or what a program waits for that leaves its file open
	synced int64         // bytes that it writes
}

// begin begins an import in one of the ways of users.
func (k *killer) begin(m *Mounted, im *killed) *running {
	k.Helper()
	r := &running{im: im, ended: make(chan struct{})}
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
	r.start(k)
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
	r.start(k)
	r.synced = n
}

func (r *running) start(k *killer) {
	k.Helper()
	if err := start(r.cmd, syscall.SIGKILL); err != nil {
		k.Fatal(err)
	}
	go func() {
		r.err = r.cmd.Wait()
		close(r.ended)
	}()
}

// over reports whether the program has ended.
func (r *running) over() bool {
	select {
	case <-r.ended:
		return true
	default:
		return false
	}
}

func (r *running) wait(k *killer) {
	if r.stdin != nil {
		r.stdin.Close()
	}
	select {
	case <-r.ended:
		if r.im.returned = r.err == nil; r.im.returned {
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
