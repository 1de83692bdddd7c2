package dicomweb

import (
	"net/http"
	"strings"
)

// rootOf returns the absolute URL of the service as the client sees it, without a slash at the end:
// Config.PublicRoot if set, else what a proxy says in Forwarded (RFC 7239) or X-Forwarded-*, else the
// request's own scheme and host. Values that are no scheme, host or path are ignored, so that nothing but
// a URL can be built from them.
func (s *Server) rootOf(r *http.Request) string {
	if s.cfg.PublicRoot != "" {
		return strings.TrimSuffix(s.cfg.PublicRoot, "/")
	}
	scheme, host := "http", r.Host
	if r.TLS != nil {
		scheme = "https"
	}
	prefix := ""
	if forwarded := first(r.Header.Get("Forwarded")); forwarded != "" {
		for _, pair := range splitQuoted(forwarded, ';') {
			name, value, _ := strings.Cut(strings.TrimSpace(pair), "=")
			value = unquote(value)
			switch strings.ToLower(name) {
			case "proto":
				takeScheme(&scheme, value)
			case "host":
				takeHost(&host, value)
			}
		}
	} else {
		takeScheme(&scheme, first(r.Header.Get("X-Forwarded-Proto")))
		takeHost(&host, first(r.Header.Get("X-Forwarded-Host")))
		if port := first(r.Header.Get("X-Forwarded-Port")); isPort(port) && !strings.Contains(afterBracket(host), ":") && !defaultPort(scheme, port) {
			host += ":" + port
		}
	}
	if p := first(r.Header.Get("X-Forwarded-Prefix")); isPath(p) {
		prefix = strings.TrimSuffix(p, "/")
	}
	if !isHost(host) {
		host = "localhost"
	}
	return scheme + "://" + host + prefix + s.cfg.Prefix
}

// first returns the first entry of a comma separated header field: the proxy nearest to the client.
func first(list string) string {
	return strings.TrimSpace(splitQuoted(list, ',')[0])
}

func takeScheme(to *string, value string) {
	switch value = strings.ToLower(value); value {
	case "http", "https":
		*to = value
	}
}

func takeHost(to *string, value string) {
	if isHost(value) {
		*to = value
	}
}

// isHost tells whether s can be host[:port] in a URL.
func isHost(s string) bool {
	return s != "" && len(s) <= 255+len(":65535") && only(s, "-.:[]_")
}

// isPath tells whether s can be the front of a path.
func isPath(s string) bool {
	return strings.HasPrefix(s, "/") && !strings.HasPrefix(s, "//") && len(s) <= 255 && only(s, "/-._~")
}

func isPort(s string) bool {
	return s != "" && len(s) <= 5 && strings.Trim(s, "0123456789") == ""
}

func defaultPort(scheme, port string) bool {
	return scheme == "http" && port == "80" || scheme == "https" && port == "443"
}

// afterBracket returns what follows an IPv6 literal, or all of host.
func afterBracket(host string) string {
	return host[strings.LastIndexByte(host, ']')+1:]
}

// only tells whether s is made of ASCII letters, digits and the bytes of others.
func only(s, others string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && strings.IndexByte(others, c) < 0 {
			return false
		}
	}
	return true
}

// studyURL, seriesURL and instanceURL are the retrieve URLs of PS3.18 §10.4.1.
func studyURL(root, study string) string          { return root + "/studies/" + study }
func seriesURL(root, study, series string) string { return studyURL(root, study) + "/series/" + series }
func instanceURL(root, study, series, instance string) string {
	return seriesURL(root, study, series) + "/instances/" + instance
}
