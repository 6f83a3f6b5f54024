// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * A program that is started with an environment of its own stays in its endpoint: what
 * the shim is found by is put back. Whoever wants it otherwise says SLIMNET_DISABLE=1.
 *
 * Nothing is allocated but on the stack, for this may be between vfork() and exec().
 */
#include <alloca.h>
#include <dlfcn.h>
#include <spawn.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include "real.h"
#include "router.h"

#pragma weak dlsym

#define MOST 16384	/* variables; with more the environment is left as it is */

static const char *value_of(char *const *environment, const char *name)
{
	const size_t length = strlen(name);

	for (; environment && *environment; environment++)
		if (!strncmp(*environment, name, length) && (*environment)[length] == '=')
			return *environment + length + 1;
	return NULL;
}

/* How many variables; -1: the shim is found already, or is not wanted. */
static long lacks(char *const *environment)
{
	const char *off, *loaded, *socket;
	long count = 0;

	if (!router_is())
		return -1;
	off = value_of(environment, SLIM_SHIM_DISABLE);
	loaded = value_of(environment, "LD_PRELOAD");
	socket = value_of(environment, SLIM_SHIM_SOCKET);
	if ((off && !strcmp(off, "1")) || (socket && loaded && strstr(loaded, router_preload())))
		return -1;
	while (environment && environment[count])
		count++;
	return count > MOST ? -1 : count;
}

static int is(const char *variable, const char *name)
{
	const size_t length = strlen(name);

	return !strncmp(variable, name, length) && variable[length] == '=';
}

/* Room for the strings that fill() makes. */
static size_t strings(char *const *environment)
{
	const char *loaded = value_of(environment, "LD_PRELOAD");

	return strlen(SLIM_SHIM_SOCKET) + strlen(router_socket()) + strlen("LD_PRELOAD") +
	       strlen(router_preload()) + (loaded ? strlen(loaded) : 0) + 8;
}

/* `whole`: room for all variables and three more; `text`: of strings() bytes. */
static void fill(char *const *environment, char **whole, char *text)
{
	const char *loaded = value_of(environment, "LD_PRELOAD");
	size_t count = 0;

	*whole++ = text;
	strcpy(text, SLIM_SHIM_SOCKET "=");
	strcat(text, router_socket());
	text += strlen(text) + 1;
	*whole++ = text;
	strcpy(text, "LD_PRELOAD=");
	strcat(text, router_preload());
	if (loaded && *loaded && !strstr(loaded, router_preload())) {
		strcat(text, ":");
		strcat(text, loaded);
	}
	for (; environment && *environment; environment++)
		if (!is(*environment, SLIM_SHIM_SOCKET) && !is(*environment, "LD_PRELOAD"))
			whole[count++] = *environment;
	whole[count] = NULL;
}

/* The environment itself, or one on the caller's stack. */
#define WHOLE(environment)						\
	({								\
		char *const *asked_ = (environment);			\
		const long count_ = lacks(asked_);			\
		char **whole_ = (char **)(uintptr_t)asked_;		\
									\
		if (count_ >= 0) {					\
			whole_ = alloca(((size_t)count_ + 3) * sizeof(*whole_));	\
			fill(asked_, whole_, alloca(strings(asked_)));	\
		}							\
		whole_;							\
	})

static void *libc(const char *name)
{
	return dlsym ? dlsym(RTLD_NEXT, name) : NULL;
}

extern char **environ;

EXPORT int execve(const char *path, char *const argv[], char *const environment[])
{
	const long error = raw(SYS_execve, (long)path, (long)argv, (long)WHOLE(environment), 0, 0, 0);

	return no((int)-error);
}

EXPORT int execv(const char *path, char *const argv[])
{
	return execve(path, argv, environ);
}

EXPORT int execvpe(const char *file, char *const argv[], char *const environment[])
{
	int (*next)(const char *, char *const *, char *const *) =
		(int (*)(const char *, char *const *, char *const *))libc("execvpe");

	return next ? next(file, argv, WHOLE(environment)) : no(ENOSYS);
}

EXPORT int execvp(const char *file, char *const argv[])
{
	return execvpe(file, argv, environ);
}

EXPORT int execle(const char *path, const char *first, ...)
{
	va_list arguments;
	size_t count = 1, index;
	char **argv;

	va_start(arguments, first);
	while (va_arg(arguments, char *))
		count++;
	va_end(arguments);
	argv = alloca((count + 1) * sizeof(*argv));
	va_start(arguments, first);
	argv[0] = (char *)(uintptr_t)first;
	for (index = 1; index <= count; index++)
		argv[index] = va_arg(arguments, char *);
	{
		char *const *environment = va_arg(arguments, char *const *);

		va_end(arguments);
		return execve(path, argv, environment);
	}
}

EXPORT int fexecve(int fd, char *const argv[], char *const environment[])
{
	int (*next)(int, char *const *, char *const *) =
		(int (*)(int, char *const *, char *const *))libc("fexecve");

	return next ? next(fd, argv, WHOLE(environment)) : no(ENOSYS);
}

typedef int (*spawn)(pid_t *, const char *, const posix_spawn_file_actions_t *,
		     const posix_spawnattr_t *, char *const *, char *const *);

EXPORT int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
		       const posix_spawnattr_t *attributes, char *const argv[],
		       char *const environment[])
{
	spawn next = (spawn)libc("posix_spawn");

	return next ? next(pid, path, actions, attributes, argv, WHOLE(environment)) : ENOSYS;
}

EXPORT int posix_spawnp(pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions,
			const posix_spawnattr_t *attributes, char *const argv[],
			char *const environment[])
{
	spawn next = (spawn)libc("posix_spawnp");

	return next ? next(pid, file, actions, attributes, argv, WHOLE(environment)) : ENOSYS;
}
