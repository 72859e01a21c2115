# Unicorn's x86 engine as a static library, for vmm._softcpu to link.
#
# Its source distribution, pinned by hash in unicorn.txt, is taken from VMM_UNICORN_DIR, or downloaded there with pip,
# then unpacked and compiled there, once: builds that name the same directory share it. All this happens while CMake
# configures, so that a build without it can go on.
#
# Sets UNICORN_SOURCE and UNICORN_BUILD; or UNICORN_PROBLEM, one clause, where it cannot be had.

set(VMM_UNICORN_DIR "$ENV{VMM_UNICORN_DIR}" CACHE PATH
  "Where Unicorn is compiled, and its source distribution looked for before it is downloaded; empty: in the build tree")

function(vmm_last_line FILE RESULT)
  file(STRINGS ${FILE} lines REGEX "[^ ]")
  list(POP_BACK lines last)
  set(${RESULT} "${last}" PARENT_SCOPE)
endfunction()

function(vmm_get_unicorn)
  set(here ${CMAKE_CURRENT_FUNCTION_LIST_DIR})
  set(requirement ${here}/unicorn.txt)
  # Its headers are found before Unicorn's own.
  set(override ${here}/unicorn)
  file(STRINGS ${requirement} pin REGEX "^unicorn==")
  string(REGEX MATCH "^unicorn==([^ ]+) --hash=sha256:([0-9a-f]+)$" pin "${pin}")
  set(version ${CMAKE_MATCH_1})
  set(hash ${CMAKE_MATCH_2})
  set(directory ${VMM_UNICORN_DIR})
  if(NOT directory)
    set(directory ${CMAKE_BINARY_DIR}/unicorn)
  endif()
  set(archives ${directory})
  set(archive ${archives}/unicorn-${version}.tar.gz)
  # Without -DNDEBUG: a failed assertion ends the machine (rescue.c).
  set(flags -O3)
  if(VMM_SANITIZE MATCHES address)
    # Its other sanitizers are left out: QEMU counts on shifts and alignments that UndefinedBehaviorSanitizer refuses,
    # and ThreadSanitizer sees nothing of translated code; one thread at a time is in the engine.
    set(flags "-O1 -g -fsanitize=address -fno-omit-frame-pointer")
    string(APPEND directory /address)
  endif()
  set(source ${directory}/unicorn-${version}/src)
  set(build ${directory}/lib)
  set(stamp ${directory}/stamp)
  set(log ${directory}/log)
  set(UNICORN_SOURCE ${source} PARENT_SCOPE)
  set(UNICORN_BUILD ${build} PARENT_SCOPE)

  file(GLOB_RECURSE inputs ${override}/*)
  set(wanted "${flags} ${CMAKE_C_COMPILER} ${CMAKE_C_COMPILER_ID} ${CMAKE_C_COMPILER_VERSION}")
  foreach(input IN ITEMS ${requirement} ${CMAKE_CURRENT_FUNCTION_LIST_FILE} ${inputs})
    file(SHA256 ${input} digest)
    string(APPEND wanted " ${digest}")
  endforeach()
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${requirement} ${inputs})

  file(MAKE_DIRECTORY ${directory})
  file(LOCK ${directory}/lock GUARD FUNCTION)
  if(EXISTS ${stamp} AND EXISTS ${build}/libunicorn.a)
    file(READ ${stamp} built)
    if(built STREQUAL wanted)
      return()
    endif()
  endif()

  if(NOT EXISTS ${archive})
    message(STATUS "Downloading unicorn ${version} for the software CPU")
    execute_process(
      COMMAND ${Python_EXECUTABLE} -m pip download --quiet --disable-pip-version-check --retries 1 --no-deps
              --no-binary unicorn --require-hashes --requirement ${requirement} --dest ${archives}
      OUTPUT_FILE ${log} ERROR_FILE ${log} RESULT_VARIABLE failed)
    if(failed OR NOT EXISTS ${archive})
      vmm_last_line(${log} last)
      set(UNICORN_PROBLEM "pip cannot download unicorn ${version}: ${last}" PARENT_SCOPE)
      return()
    endif()
  endif()
  file(SHA256 ${archive} digest)
  if(NOT digest STREQUAL hash)
    set(UNICORN_PROBLEM "${archive} is not the file that is meant (its SHA-256 is ${digest}): remove it" PARENT_SCOPE)
    return()
  endif()

  find_program(VMM_PATCH patch)
  if(NOT VMM_PATCH)
    set(UNICORN_PROBLEM "patch is not installed (Debian: apt-get install patch)" PARENT_SCOPE)
    return()
  endif()
  message(STATUS "Building the software CPU (unicorn ${version}, x86 only; about a minute, once)")
  file(REMOVE_RECURSE ${directory}/unicorn-${version} ${build} ${stamp})
  file(ARCHIVE_EXTRACT INPUT ${archive} DESTINATION ${directory})
  file(GLOB patches ${override}/patches/*.patch)
  list(SORT patches)
  foreach(patch IN LISTS patches)
    execute_process(
      COMMAND ${VMM_PATCH} --quiet --strip=1 --directory=${directory}/unicorn-${version} --input=${patch}
      OUTPUT_FILE ${log} ERROR_FILE ${log} RESULT_VARIABLE failed)
    if(failed)
      vmm_last_line(${log} last)
      set(UNICORN_PROBLEM "${patch} does not apply to unicorn ${version}: ${last}" PARENT_SCOPE)
      return()
    endif()
  endforeach()
  cmake_host_system_information(RESULT processors QUERY NUMBER_OF_LOGICAL_CORES)
  execute_process(
    COMMAND ${CMAKE_COMMAND} -S ${source} -B ${build} -G ${CMAKE_GENERATOR} -DCMAKE_MAKE_PROGRAM=${CMAKE_MAKE_PROGRAM}
            -DCMAKE_C_COMPILER=${CMAKE_C_COMPILER} -DCMAKE_BUILD_TYPE=Release "-DCMAKE_C_FLAGS_RELEASE=${flags}"
            -DCMAKE_POSITION_INDEPENDENT_CODE=ON
            "-DCMAKE_C_FLAGS=-iquote \"${override}\" -fvisibility=hidden -w"
            -DUNICORN_ARCH=x86 -DBUILD_SHARED_LIBS=OFF -DUNICORN_LEGACY_STATIC_ARCHIVE=ON -DUNICORN_BUILD_TESTS=OFF
            -DUNICORN_INSTALL=OFF
    OUTPUT_FILE ${log} ERROR_FILE ${log} RESULT_VARIABLE failed)
  if(NOT failed)
    execute_process(
      COMMAND ${CMAKE_COMMAND} --build ${build} --parallel ${processors}
      OUTPUT_FILE ${log} ERROR_FILE ${log} RESULT_VARIABLE failed)
  endif()
  if(failed OR NOT EXISTS ${build}/libunicorn.a)
    vmm_last_line(${log} last)
    set(UNICORN_PROBLEM "unicorn ${version} cannot be compiled here: ${last} (the whole log is ${log})" PARENT_SCOPE)
    return()
  endif()
  file(WRITE ${stamp} "${wanted}")
endfunction()

vmm_get_unicorn()
