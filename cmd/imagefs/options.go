package main

import (
	"fmt"
	"os/user"
	"strconv"
	"strings"
	"time"
)

// size is a flag in bytes: a number with an optional K, M, G or T (binary).
type size int64

func (s *size) String() string { return strings.ReplaceAll(iec(int64(*s)), " ", "") }
func (s *size) Type() string   { return "size" }

func (s *size) Set(v string) error {
	t := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(v), "B"), "I")
	shift := 0
	if i := strings.IndexAny(t, "KMGT"); i >= 0 && i == len(t)-1 {
		shift = 10 * (strings.IndexByte("KMGT", t[i]) + 1)
		t = t[:i]
	}
	n, err := strconv.ParseInt(t, 10, 64)
	if err != nil || n < 0 || n > 1<<62>>shift {
		return fmt.Errorf("%q is not a size such as 512M", v)
	}
	*s = size(n << shift)
	return nil
}

// octal is a flag of permission bits.
type octal uint32

func (o *octal) String() string { return fmt.Sprintf("%03o", uint32(*o)) }
func (o *octal) Type() string   { return "octal" }

func (o *octal) Set(v string) error {
	n, err := strconv.ParseUint(v, 8, 32)
	if err != nil || n > 0o777 {
		return fmt.Errorf("%q is not an octal mask such as 022", v)
	}
	*o = octal(n)
	return nil
}

// applyOptions takes -o apart: what is a flag sets it, what is the kernel's is
// passed on, what only mount(8) itself understands is dropped.
func (f *mountFlags) applyOptions() error {
	var kernel []string
	for _, group := range f.options {
		for opt := range strings.SplitSeq(group, ",") {
			if err := f.applyOption(opt, &kernel); err != nil {
				return err
			}
		}
	}
	f.options = kernel
	return nil
}

func (f *mountFlags) applyOption(opt string, kernel *[]string) (err error) {
	key, value, _ := strings.Cut(opt, "=")
	switch strings.ReplaceAll(key, "-", "_") {
	case "ro", "read_only":
		f.spool.readOnly = true
	case "write_back":
		f.spool.writeBack = true
	case "spool":
		f.spool.dir = value
	case "unmount_timeout":
		f.spool.timeout, err = time.ParseDuration(value)
	case "", "rw", "defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "nofail", "_netdev",
		"async", "default_permissions", "nosuid", "nodev", "relatime", "noatime", "nodiratime", "norelatime", "lazytime":
		// The mount is nosuid and nodev, and keeps no times of access, whatever is said.
	case "noexec", "exec":
		*kernel = append(*kernel, key)
	case "allow_other":
		f.allowOther = true
	case "uid":
		f.uid, err = userID(value)
	case "gid":
		f.gid, err = groupID(value)
	case "umask":
		err = f.umask.Set(value)
	case "formats": // "+" for the comma that separates options
		f.formats = strings.ReplaceAll(value, "+", ",")
	case "cache_size":
		err = f.cacheSize.Set(value)
	case "cache_dir":
		f.disk.dir = value
	case "disk_cache_size":
		err = f.disk.size.Set(value)
	case "refresh":
		f.refresh, err = time.ParseDuration(value)
	case "timeout":
		f.store.timeout, err = time.ParseDuration(value)
	case "endpoint":
		f.store.endpoint = value
	case "region":
		f.store.region = value
	case "path_style":
		f.store.pathStyle = value
	case "profile":
		f.store.profile = value
	case "anonymous":
		f.store.anonymous = true
	case "log_file":
		f.logFile = value
	default:
		if strings.HasPrefix(key, "x-") || strings.HasPrefix(key, "X-") || strings.HasPrefix(key, "comment") {
			return nil
		}
		return usagef("unknown mount option %q", opt)
	}
	if err != nil {
		return usagef("mount option %q: %v", opt, err)
	}
	return nil
}

func userID(s string) (int64, error) {
	if u, err := user.Lookup(s); err == nil {
		s = u.Uid
	}
	return strconv.ParseInt(s, 10, 32)
}

func groupID(s string) (int64, error) {
	if g, err := user.LookupGroup(s); err == nil {
		s = g.Gid
	}
	return strconv.ParseInt(s, 10, 32)
}
