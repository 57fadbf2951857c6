/* SPDX-License-Identifier: BSD-2-Clause */
#include "config.h"

#include "cli.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *tool_name = "?", *tool_help = "";
static volatile sig_atomic_t interrupted;

/*
 * A file opened while 0, 1 or 2 is free would get that number, and messages would end up in a disk.
 * What takes the place fails when it is used.
 */
static void guard_standard_streams(void)
{
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
		if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd ? O_RDONLY : O_WRONLY) != fd)
			exit(IMG_IO);
}

void cli_init(char **argv, const char *tool, const char *help)
{
	argv[0] = (char *)(uintptr_t)tool;
	tool_name = tool;
	tool_help = help;
	guard_standard_streams();
}

bool cli_usable(int fd)
{
	int mode = fcntl(fd, F_GETFL);

	return mode >= 0 && (mode & O_ACCMODE) != (fd == STDIN_FILENO ? O_WRONLY : O_RDONLY);
}

void cli_help(void)
{
	fputs(tool_help, stdout);
	exit(cli_exit(0));
}

void cli_version(void)
{
	printf("%s (qsm-tools) %s\n", tool_name, PACKAGE_VERSION);
	exit(cli_exit(0));
}

void cli_print_text(FILE *f, const char *s, const char *allow)
{
	for (; *s; s++) {
		unsigned char c = (unsigned char)*s;

		/* C1 controls are two bytes in UTF-8. */
		if (c == 0xc2 && (unsigned char)s[1] >= 0x80 && (unsigned char)s[1] < 0xa0)
			fprintf(f, "\\x%02x", (unsigned char)*++s);
		else if ((c < 0x20 && !strchr(allow, c)) || c == 0x7f)
			fprintf(f, "\\x%02x", c);
		else
			fputc(c, f);
	}
}

/* Messages quote names from untrusted files: what a terminal would act on is escaped. */
static __attribute__((format(printf, 1, 0))) void say(const char *fmt, va_list ap)
{
	char buf[4096];

	vsnprintf(buf, sizeof(buf), fmt, ap);
	fprintf(stderr, "%s: ", tool_name);
	cli_print_text(stderr, buf, "\n\t");
	fputc('\n', stderr);
}

void cli_usage(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say(fmt, ap);
	va_end(ap);
	fprintf(stderr, "Try '%s --help'.\n", tool_name);
	exit(IMG_USAGE);
}

void cli_warn(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say(fmt, ap);
	va_end(ap);
}

int cli_fail(const struct img_err *err)
{
	if (err->msg[0])
		cli_warn("%s", err->msg);
	return err->code ? err->code : IMG_BUG;
}

int cli_exit(int status)
{
	if (ferror(stdout) || fclose(stdout) != 0) {
		if (errno != EPIPE || status == 0)
			cli_warn("cannot write to standard output: %s", strerror(errno));
		return status ? status : IMG_IO;
	}
	return status;
}

bool cli_size(const char *s, uint64_t *out)
{
	static const char suffixes[] = "KMGTPE";
	unsigned shift = 0;
	const char *p;
	char *end;

	if (*s < '0' || *s > '9')
		return false;
	errno = 0;
	*out = strtoull(s, &end, 10);
	if (errno)
		return false;
	if (*end && (p = strchr(suffixes, *end & ~32)) && *p) {
		shift = 10 * (unsigned)(p - suffixes + 1);
		end++;
	}
	if (*end || (shift && *out >> (64 - shift)))
		return false;
	*out <<= shift;
	return true;
}

bool cli_rate(const char *s, uint64_t *out)
{
	static const struct {
		const char *suffix;
		uint64_t bits;
	} units[] = {{"kbit", 1000}, {"mbit", 1000000}, {"gbit", 1000000000}, {"bit", 1}};
	uint64_t n;
	char *end;

	if (cli_size(s, out))
		return *out > 0;
	if (*s < '0' || *s > '9')
		return false;
	errno = 0;
	n = strtoull(s, &end, 10);
	for (size_t i = 0; !errno && i < sizeof(units) / sizeof(units[0]); i++)
		if (strcmp(end, units[i].suffix) == 0 && n <= UINT64_MAX / units[i].bits) {
			*out = n * units[i].bits / 8;
			return *out > 0;
		}
	return false;
}

const char *cli_human(uint64_t bytes, char *buf)
{
	static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
	double v = (double)bytes;
	unsigned u = 0;

	while (v >= 1024 && u < 5) {
		v /= 1024;
		u++;
	}
	snprintf(buf, 32, u ? "%.1f %s" : "%.0f %s", v, units[u]);
	return buf;
}

void cli_common_init(struct cli_common *c)
{
	/* Lives as long as the process: the options point into it. */
	static char *path;

	memset(c, 0, sizeof(*c));
	c->open.parent_dirs = c->dirs;
	path = getenv("QSM_PARENT_PATH");
	if (!path || !*path || !(path = strdup(path)))
		return;
	for (char *save = NULL, *d = strtok_r(path, ":", &save); d; d = strtok_r(NULL, ":", &save))
		if (c->open.nparent_dirs < sizeof(c->dirs) / sizeof(c->dirs[0]))
			c->dirs[c->open.nparent_dirs++] = d;
}

bool cli_common(struct cli_common *c, int opt, const char *arg)
{
	switch (opt) {
	case 'h':
		cli_help();
	case 'V':
		cli_version();
	case 'q':
		c->quiet = true;
		return true;
	case CLI_PROGRESS:
		if (strcmp(arg, "json") != 0)
			cli_usage("--progress: '%s' is not known, only json", arg);
		c->progress_json = true;
		return true;
	case CLI_PARENT_DIR:
		if (c->open.nparent_dirs == sizeof(c->dirs) / sizeof(c->dirs[0]))
			cli_usage("--parent-dir: too many");
		c->dirs[c->open.nparent_dirs++] = arg;
		return true;
	case CLI_PARENT_ANYWHERE:
		c->open.parent_anywhere = true;
		return true;
	case '?':
	case ':':
		fprintf(stderr, "Try '%s --help'.\n", tool_name);
		exit(IMG_USAGE);
	}
	return false;
}

void cli_warn_chain(const struct cli_common *c, const struct img_chain *chain)
{
	for (unsigned i = 0; !c->quiet && i < img_layers(chain); i++)
		if (img_layer_info(chain, i)->warning)
			cli_warn("%s: warning: %s", img_layer_path(chain, i),
				 img_layer_info(chain, i)->warning);
}

static double seconds(const struct timespec *from, const struct timespec *to)
{
	return (double)(to->tv_sec - from->tv_sec) + (double)(to->tv_nsec - from->tv_nsec) / 1e9;
}

void cli_progress_start(struct cli_progress *p, const struct cli_common *c, const char *what)
{
	memset(p, 0, sizeof(*p));
	p->common = c;
	p->what = what;
	p->bar = !c->quiet && !c->progress_json && isatty(STDERR_FILENO);
	clock_gettime(CLOCK_MONOTONIC, &p->start);
	p->last = p->start;
}

static void show(struct cli_progress *p, uint64_t done, uint64_t planned,
		 const struct timespec *now)
{
	double t = seconds(&p->start, now), rate = t > 0 ? (double)done / t : 0;
	char a[32], b[32], c[32];

	if (p->common->progress_json) {
		fprintf(stderr,
			"{\"stage\":\"%s\",\"done\":%" PRIu64 ",\"total\":%" PRIu64
			",\"seconds\":%.3f,\"rate\":%.0f}\n",
			p->what, done, planned, t, rate);
		return;
	}
	fprintf(stderr, "\r%s: %s of %s, %s/s, %.0f s left\033[K", p->what, cli_human(done, a),
		cli_human(planned, b), cli_human((uint64_t)rate, c),
		rate > 0 && planned > done ? (double)(planned - done) / rate : 0.0);
	p->shown = true;
}

int cli_progress(void *ctx, uint64_t done, uint64_t planned)
{
	struct cli_progress *p = ctx;
	struct timespec now;

	if (p->bar || p->common->progress_json) {
		clock_gettime(CLOCK_MONOTONIC, &now);
		if (seconds(&p->last, &now) >= 0.2) {
			p->last = now;
			show(p, done, planned, &now);
		}
	}
	return interrupted;
}

void cli_progress_end(struct cli_progress *p, uint64_t done)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	if (p->common->progress_json || p->shown)
		show(p, done, done, &now);
	if (p->shown)
		fputc('\n', stderr);
}

static void on_signal(int sig)
{
	(void)sig;
	interrupted = 1;
}

void cli_catch_signals(void)
{
	struct sigaction sa = {.sa_handler = on_signal}, old;

	/* No SA_RESTART: a blocked read of a pipe must return; io.c knows EINTR. */
	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
	/* A terminal that was closed, unless nohup(1) says to go on without it. */
	if (sigaction(SIGHUP, NULL, &old) == 0 && old.sa_handler != SIG_IGN)
		sigaction(SIGHUP, &sa, NULL);
	sa.sa_handler = SIG_IGN;
	sigaction(SIGPIPE, &sa, NULL);
}

bool cli_interrupted(void)
{
	return interrupted;
}

/* Length of the UTF-8 character at P, 0 when it is none (overlong, surrogate, cut). */
static int utf8_len(const unsigned char *p)
{
	int n = p[0] < 0x80		      ? 1
		: p[0] >= 0xc2 && p[0] < 0xe0 ? 2
		: p[0] >= 0xe0 && p[0] < 0xf0 ? 3
		: p[0] >= 0xf0 && p[0] < 0xf5 ? 4
					      : 0;

	for (int i = 1; i < n; i++)
		if ((p[i] & 0xc0) != 0x80)
			return 0;
	if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) ||
	    (p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f))
		return 0;
	return n;
}

void cli_json_string(FILE *f, const char *s)
{
	const unsigned char *p = (const unsigned char *)s;

	fputc('"', f);
	while (*p) {
		int n = utf8_len(p);

		if (n == 0) {
			fputs("\\ufffd", f);
			n = 1;
		} else if (n > 1) {
			fwrite(p, 1, (size_t)n, f);
		} else if (*p == '"' || *p == '\\') {
			fprintf(f, "\\%c", *p);
		} else if (*p < 0x20 || *p == 0x7f) {
			fprintf(f, "\\u%04x", *p);
		} else {
			fputc(*p, f);
		}
		p += n;
	}
	fputc('"', f);
}
