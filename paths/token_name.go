package paths

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"vault-plugin-secrets-nomad/client"
)

// The name of a token that this engine makes:
//
//	vault-<role>-<display name>-<mark>-<deadline>-<random><check>
//
// Its beginning is for people who look at "nomad acl token list", and is what
// the builtin engine's names begin with. Its tail is for machines, always whole,
// and of one length: the mount's mark, the Unix time in seconds after which no
// lease can stand for the token, what makes the name one of a kind, and a check
// over all of it, without which a name that only looks alike could be taken for
// one of ours.
const (
	namePrefix     = "vault-"
	markLength     = 8
	deadlineLength = 10
	randomLength   = 8
	checkLength    = 8
	tailLength     = markLength + 1 + deadlineLength + 1 + randomLength + checkLength
	minNameLength  = len(namePrefix) + tailLength
)

// tokenName makes a name that no other token has. limit is the longest that
// the config allows, in bytes, 0 for the longest that Nomad allows; what is
// readable is shortened in its middle to fit, and the tail never. A limit below
// minNameLength counts as that.
func tokenName(role, displayName, mountID string, deadline time.Time, limit int) string {
	if limit <= 0 || limit > client.MaxNameLength {
		limit = client.MaxNameLength
	}
	name := namePrefix
	if readable := shorten(printable(role+"-"+displayName), limit-minNameLength-1); readable != "" {
		name += readable + "-"
	}
	name += fmt.Sprintf("%s-%0*d-%s", mark(mountID), deadlineLength, deadline.Unix(), strings.ToLower(rand.Text())[:randomLength])
	return name + check(mountID, name)
}

// deadlineOf tells the deadline in a name that tokenName made for this mount;
// ok is false for every other name.
func deadlineOf(mountID, name string) (deadline time.Time, ok bool) {
	if len(name) < minNameLength || !strings.HasPrefix(name, namePrefix) {
		return time.Time{}, false
	}
	body := name[:len(name)-checkLength]
	if !hmac.Equal([]byte(name[len(body):]), []byte(check(mountID, body))) {
		return time.Time{}, false
	}
	tail := name[len(name)-tailLength:]
	return parseDeadline(tail[markLength+1 : markLength+1+deadlineLength])
}

// mark tells this mount's tokens from every other mount's and every other
// Vault's.
func mark(mountID string) string {
	sum := sha256.Sum256([]byte("vault-plugin-secrets-nomad/" + mountID))
	return lowerBase32(sum[:])[:markLength]
}

// check is over all of a name that comes before it, and the mount.
func check(mountID, body string) string {
	mac := hmac.New(sha256.New, []byte("vault-plugin-secrets-nomad/"+mountID))
	mac.Write([]byte(body))
	return lowerBase32(mac.Sum(nil))[:checkLength]
}

func lowerBase32(b []byte) string {
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b))
}

// printable replaces what would not come back from Nomad as it was sent, or
// would disturb a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '_'
		}
		return r
	}, s)
}

// shorten keeps the beginning and the end of s, and at most limit bytes.
func shorten(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	if limit < 3 {
		return ""
	}
	head, tail := s[:limit/2], s[len(s)-(limit-1-limit/2):]
	for !utf8.ValidString(head) {
		head = head[:len(head)-1]
	}
	for !utf8.ValidString(tail) {
		tail = tail[1:]
	}
	return head + "~" + tail
}

// deadlineText and parseDeadline keep a deadline in a lease's InternalData,
// where numbers come back as floating point.
func deadlineText(deadline time.Time) string { return strconv.FormatInt(deadline.Unix(), 10) }

func parseDeadline(text string) (time.Time, bool) {
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil || seconds <= 0 {
		return time.Time{}, false
	}
	return time.Unix(seconds, 0), true
}
